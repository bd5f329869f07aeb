"""Models that a function makes: `model.source: pkg.mod:function` calls it with an empty folder to fill.

Knows the function, and the cache's folder of what it made. Refuses to know what a model's folder must hold.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from arpo.errors import ConfigError
from arpo.files import cache_folder
from arpo.import_path import import_from_path
from arpo.models.identity import identity


@cache
def made_model(source: str, check: Callable[[Path], Path]) -> Path:
    """The folder that the function at the import path `source` fills, named by its content. It is made once a process:
    what the function depends on cannot be seen from outside. `check` raises ConfigError for a folder that is no model.
    """
    function = import_from_path(source, "model.source")
    models = cache_folder() / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=models, prefix=".made-") as part:
            made = Path(part) / "model"
            made.mkdir()
            function(made)
            folder = models / f"{source.replace(':', '-')}--{identity(check(made))}"
            if not folder.is_dir():
                try:
                    made.rename(folder)
                except OSError:
                    if not folder.is_dir():  # else another process was first
                        raise
    except OSError as error:
        hint = "ARPO_CACHE names another folder for the cache"
        where = "model.source"
        raise ConfigError(f"the model cannot be written to the cache ({error})", where=where, hint=hint) from error
    return folder
