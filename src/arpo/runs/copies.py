"""A copy of the run folder at an fsspec URL, such as a bucket of S3, from which another machine can go on.

A checkpoint there is whole as soon as it has its manifest: that is copied last, and removed before other files take the
place of these. Knows files. Refuses to know what is in them.
"""

from pathlib import Path
from typing import Any

from arpo.errors import ConfigError, first_line
from arpo.files import PARTIAL
from arpo.runs.atomic import MANIFEST, whole_folder
from arpo.runs.folder import is_run

WHERE = "train.copy_to"
LEFT_OUT = ("lock", "weights", "cut")
"""What is of use only where the run is at work."""


class RunCopy:
    """The copy of the run in `folder` at `url`/NAME. Raises ConfigError for a URL that fsspec cannot reach files by."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, f"{url.rstrip('/')}/{folder.absolute().name}"
        self.files, self.root = _reached(self.url)

    def push(self) -> None:
        """Copy what has changed since the last time, and remove there what is gone here. Raises what the storage's
        client raises."""
        there = _listed(self.files, self.root)
        here = {name: path for path in sorted(self.folder.rglob("*")) if (name := self._name(path))}
        of_old = [name for name in there if name not in here]
        whole, made = set[str](), set[str]()
        for name in [name for name in here if Path(name).name == MANIFEST]:
            if name in there and self.files.cat_file(f"{self.root}/{name}") == here[name].read_bytes():
                whole.add(str(Path(name).parent))
            elif name in there:
                of_old.insert(0, name)
        for name in sorted(of_old, key=lambda name: Path(name).name != MANIFEST):
            self.files.rm_file(f"{self.root}/{name}")
        for name, path in sorted(here.items(), key=lambda one: Path(one[0]).name == MANIFEST):
            settled = "/" in name and there.get(name) == path.stat().st_size  # files beside the recipe change in place
            if not (settled or any(folder in whole for folder in map(str, Path(name).parents))):
                if (folder := (Path(self.root) / name).parent.as_posix()) not in made:
                    self.files.makedirs(folder, exist_ok=True)
                    made.add(folder)
                self.files.put_file(str(path), f"{self.root}/{name}")

    def try_push(self) -> str | None:
        """`push`. Returns what went wrong, where something did."""
        try:
            self.push()
        except Exception as error:  # noqa: BLE001  the storage's client may raise anything: no key, no network
            return f"the run could not be copied to {self.url} ({type(error).__name__}: {first_line(error)})"
        return None

    def _name(self, path: Path) -> str:
        """Its name in the copy; empty for what is not copied."""
        name = path.relative_to(self.folder)
        left_out = name.parts[0] in LEFT_OUT or any(part.startswith(PARTIAL) for part in name.parts)
        return "" if left_out or not path.is_file() else name.as_posix()


def fetch_run(url: str, into: Path = Path("runs")) -> Path:
    """The run whose copy is at `url`, as a folder in `into`. One that is there already is no older, and stays. Raises
    ConfigError where the URL holds no run."""
    files, root = _reached(url.rstrip("/"))
    target = into / Path(root).name
    if is_run(target):
        return target
    try:
        there = _listed(files, root)
    except Exception as error:  # its client may raise anything: no key, no network
        raise ConfigError(f"cannot be read: {first_line(error)}", where="--resume", value=url) from error
    if "recipe.yaml" not in there:
        raise ConfigError("there is no copy of a run", where="--resume", value=url, hint=f"{WHERE} makes one: URL/NAME")
    with whole_folder(target) as partial:
        for name in there:
            path = partial / name
            if not path.resolve().is_relative_to(partial.resolve()):
                raise ConfigError("names a file outside of the run", where="--resume", value=f"{url}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(path))
    (target / MANIFEST).unlink()  # the folder is to change
    return target


def _reached(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        hint = "Such as s3://BUCKET/runs, with the package that fsspec wants for it (s3fs, gcsfs, adlfs)"
        raise ConfigError(f"no storage: {first_line(error)}", where=WHERE, value=url, hint=hint) from error


def _listed(files: Any, root: str) -> dict[str, int]:
    """Sizes of all files below `root`, by the rest of their names."""
    return {path.removeprefix(root).lstrip("/"): entry["size"] for path, entry in files.find(root, detail=True).items()}
