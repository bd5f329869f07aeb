"""`arpo sweep`: runs a study's cells, then prints and writes its figures."""

from pathlib import Path

from arpo.display.terminal import Console
from arpo.files import write_atomic
from arpo.study.figures import Figures
from arpo.study.plan import read_rows, read_study
from arpo.study.sweep import sweep
from arpo.terminal_safe import terminal_safe


def carry_out(path: Path, runs: Path, *, jobs: int, limit: int | None) -> int:
    """Returns the number of cells that failed. Raises ConfigError, FormatError."""
    console = Console(soft_wrap=True)
    study = read_study(path)
    failed = sweep(study, path, runs, jobs=jobs, limit=limit, tell=console.print)
    figures = Figures(study, read_rows(path))
    tables = figures.tables()
    for table in tables:
        console.print(table.rich())
    if tables:
        picture = figures.draw(path.with_suffix(".png"))
        parts = [f"# {path.stem}", *(table.markdown() for table in tables)]
        parts += [f"![Accuracy over tool calls]({picture.name})"] if picture else []
        written = write_atomic(path.with_suffix(".md"), terminal_safe("\n\n".join(parts)) + "\n")
        console.print(f"written: {written}")
    return failed
