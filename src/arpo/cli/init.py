"""`arpo init` copies the files under `example/`, which are checked and tested like all other files."""

from pathlib import Path

from arpo.errors import ConfigError

EXAMPLE = Path(__file__).parent / "example"


def write_example(folder: Path) -> list[Path]:
    """Copy the example into `folder`. Returns the new files. Raises ConfigError if the folder is not empty."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError("this folder is not empty: nothing was written", where=str(folder), hint="Name a new one")
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for source in sorted(path for path in EXAMPLE.iterdir() if path.is_file()):
            target = folder / source.name
            target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
            written.append(target)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror or error})", where=str(folder)) from error
    return written
