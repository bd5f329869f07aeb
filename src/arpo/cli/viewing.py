"""`arpo view` and `arpo show` present recorded runs in the browser, in one file, or in the terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path

from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.terminal_safe import print_line
from arpo.view.library import Library, Viewed
from arpo.view.terminal import MOST_CHARS, print_table, print_tree


def view(runs: Sequence[Path], *, port: int | None, browser: bool, export: Path | None, tree: str | None) -> None:
    """Serve the runs until interrupted, or write them as one page with `export`. Raises ConfigError."""
    if tree is not None and export is None:
        raise ConfigError(
            "needs --export PAGE.html: on the page itself every tree has its address", where="--tree", value=tree
        )
    if export is not None:
        _export(runs, export, None if tree is None else _step_and_task(tree))
        return
    from arpo.view.server import serve

    serve(Library(runs), port=port, browser=browser)


def _export(runs: Sequence[Path], out: Path, tree: tuple[int, str] | None) -> None:
    from arpo.view.page import export

    library = Library(runs)
    try:
        note = export(library, out, tree)
    finally:
        library.close()
    print_line(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB){f': {note}' if note else ''}")


def _step_and_task(text: str) -> tuple[int, str]:
    step, colon, task = text.partition(":")
    if not colon or not step.isdecimal() or len(step) > 9 or not task:
        raise ConfigError(
            "must be STEP:TASK", where="--tree", value=text, hint="`arpo show RUN --step 1` lists the tasks of a step"
        )
    return int(step), task


def show(run: Path, *, task: str | None, step: int | None, whole: bool, console: Console | None = None) -> None:
    """Print the tree of `task` (without `step`: of the last step that has one). Without a task, list the trees of a
    step.

    Raises ConfigError if there is none."""
    console = console or Console(soft_wrap=False)
    library = Library([run])
    ((name, viewed),) = library.runs.items()
    try:
        steps = viewed.run.event_steps() if viewed.run else []
        if not steps:
            raise ConfigError("there are no recorded trees here", where=str(run))
        if step is not None and step not in steps:
            raise ConfigError(
                "this step has no recorded trees", where="--step", value=step, hint=f"there are {_spans(steps)}"
            )
        if task is None:
            step = steps[-1] if step is None else step
            rows = library.answer(f"/api/runs/{name}/trees", {"step": str(step)}, most_rows=1 << 20)["rows"]
            print_table(console, rows, f"{len(rows)} trees of step {step} (steps {_spans(steps)}); --task shows one")
            return
        shown = _last_step_of(viewed, task) if step is None else step
        answer = library.answer(f"/api/runs/{name}/tree", {"step": str(shown), "task": task})
        print_tree(console, answer, most_chars=1 << 30 if whole else MOST_CHARS)
    finally:
        _tell_damage(viewed, step)
        library.close()


def _tell_damage(viewed: Viewed, step: int | None) -> None:
    """Say what could not be read of a step (None: of any), whose newer trees may then be missing."""
    for damaged, message in viewed.index.errors() if viewed.index else []:
        if step in (None, damaged):
            print_line(f"warning: {message}; trees behind it are not shown", file=sys.stderr)


def _last_step_of(viewed: Viewed, task: str) -> int:
    assert viewed.index is not None
    viewed.index.catch_up()
    rows = viewed.index.rows("SELECT MAX(step) FROM trees WHERE task = ?", (task,))
    if rows[0][0] is None:
        near = viewed.index.rows("SELECT task FROM trees WHERE instr(task, ?) ORDER BY step DESC LIMIT 3", (task,))
        hint = (
            f"such as {', '.join(name for (name,) in near)}"
            if near
            else "without --task the trees of a step are listed"
        )
        raise ConfigError("no step has a tree of this task", where="--task", value=task, hint=hint)
    return int(rows[0][0])


def _spans(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0])
