"""A copy of the run folder at an fsspec URL, such as a bucket of S3, from which another machine can go on.

A checkpoint there is whole as soon as it has its manifest: that is copied last, and removed before other files take the
place of these. Knows files. Refuses to know what is in them.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError, first_line
from arpo.files import PARTIAL
from arpo.runs.atomic import MANIFEST, whole_folder
from arpo.runs.folder import is_run

WHERE, RESUME = "train.copy_to", "--resume"
LEFT_OUT = ("lock", "weights", "cut")
"""What is of use only where the run is at work."""


class RunCopy:
    """The copy of the run in `folder` at `url`/NAME. Raises ConfigError where there is no storage at the URL."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, f"{url.rstrip('/')}/{folder.absolute().name}"
        self.files, self.root = _reached(self.url, WHERE)

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
    ConfigError where the URL holds no run, what is no file of a run, or more than the disk has room for."""
    files, root = _reached(url.rstrip("/"), RESUME)
    target = into / Path(root).name
    if is_run(target):
        return target
    with _told("cannot be read", RESUME, url):
        there = _listed(files, root)
    if "recipe.yaml" not in there:
        raise ConfigError("there is no copy of a run", where=RESUME, value=url, hint=f"{WHERE} makes one: URL/NAME")
    with _told("cannot be copied", RESUME, url), whole_folder(target) as partial:
        room = shutil.disk_usage(partial).free
        if (size := sum(there.values())) > room:
            wrong = f"has {size / 2**20:,.0f} MB, and the disk {room / 2**20:,.0f} MB of room"
            raise ConfigError(wrong, where=RESUME, value=url)
        for name in there:
            path = partial / name
            if not path.resolve().is_relative_to(partial.resolve()):
                raise ConfigError("names a file outside of the run", where=RESUME, value=f"{url}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(path))
    (target / MANIFEST).unlink()  # the folder is to change
    return target


@contextmanager
def _told(what: str, where: str, url: str) -> Iterator[None]:
    """A failure in this block, of the storage's client or because of what the storage holds, as a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the client may raise anything: no key, no network, a file that is none
        raise ConfigError(f"{what}: {first_line(error)}", where=where, value=url) from error


def _reached(url: str, where: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]
    except Exception as error:  # some clients connect at once
        hint = "Such as s3://BUCKET/runs, with the package that fsspec wants for it (s3fs, gcsfs, adlfs)"
        raise ConfigError(f"no storage: {first_line(error)}", where=where, value=url, hint=hint) from error


def _listed(files: Any, root: str) -> dict[str, int]:
    """Sizes of all files below `root`, by the rest of their names. Raises ConfigError where something is no file."""
    found = files.find(root, detail=True)
    for path, entry in found.items():
        if entry["type"] != "file":
            raise ConfigError(f"holds what is no file: {path}", where=RESUME)
    return {path.removeprefix(root).lstrip("/"): entry["size"] or 0 for path, entry in found.items()}
