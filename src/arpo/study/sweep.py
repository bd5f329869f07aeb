"""Carries out a study: one process a cell, some at a time, and a row for each cell that is finished.

A cell whose row is there is skipped, one that was interrupted goes on from its checkpoint, and one that fails is told
and tried again by the next sweep. Knows processes and run folders. Refuses to know what a cell's figures mean.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import arpo
from arpo.files import cut_unfinished_line, json_line, open_to_append
from arpo.runs.folder import RunFolder, is_run
from arpo.study.plan import Cell, Row, Study, cells_of, read_rows, recipe_of, rows_path

HISTORY = (
    "calls/executed",
    "leaves/all",
    "tokens/generated",
    "train/tokens_trained",
    "seconds/step",
    "accuracy/probe_lines",
    "leaves/fills",
    "leaves/siblings",
    "entropy/rise",
)
"""Metrics of a run's steps that its row keeps."""


def sweep(
    study: Study, path: Path, runs: Path, *, jobs: int = 1, limit: int | None = None, tell: Callable[[str], None]
) -> int:
    """Run the cells that have no row yet, `jobs` at a time and at most `limit` of them, in folders below `runs`.
    Returns the number of cells that failed."""
    done = {row.key for row in read_rows(path)}
    left = [cell for cell in cells_of(study, path) if cell.key not in done]
    recipe = recipe_of(study, path)
    tell(f"{len(done)} cells are finished, {len(left)} are left")
    left, failed = left[:limit], 0
    processes: set[subprocess.Popen[bytes]] = set()
    with _interrupted_by(signal.SIGTERM, signal.SIGHUP), ThreadPoolExecutor(jobs) as pool:
        try:
            under_way = {pool.submit(run_cell, cell, recipe, runs, jobs, processes): cell for cell in left}
            for number, finished in enumerate(as_completed(under_way), 1):
                cell, row = under_way[finished], finished.result()
                if isinstance(row, Path):
                    failed += 1
                    tell(f"{number}/{len(left)} {cell.name}, seed {cell.seed}: failed, see {row}")
                    continue
                _append(rows_path(path), row)
                tell(f"{number}/{len(left)} {cell.name}, seed {cell.seed}: {_in_words(row)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                process.terminate()  # it saves what is finished, and is waited for
            raise
    return failed


@contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block these signals raise KeyboardInterrupt, as Ctrl-C does: cells do not outlive their sweep. One
    that is ignored (`nohup`) stays so."""
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in numbers if main and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_cell(cell: Cell, recipe: Path, runs: Path, jobs: int, processes: "set[subprocess.Popen[bytes]]") -> Row | Path:
    """Carry out a cell in a process of its own, which is among `processes` while it lives. Returns its row, or the log
    of one that failed."""
    folder = runs / f"{cell.key}-seed{cell.seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    goes_on = is_run(folder)
    arguments = ["--resume", str(folder)] if goes_on else [str(recipe), *cell.overrides, "--out", str(folder)]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with open_to_append(log) as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "arpo", "train", *arguments],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )
        processes.add(process)
        code = process.wait()
        processes.discard(process)
    if code or not is_run(folder) or RunFolder(folder).summary().get("status") != "finished":
        return log
    return row_of(cell, RunFolder(folder))


def row_of(cell: Cell, run: RunFolder) -> Row:
    """What a study keeps of a finished run: figures by step, and accuracy on held-out tasks before and after."""
    summary, history = run.summary(), run.metrics()
    return Row(
        cell=cell.name,
        seed=cell.seed,
        key=cell.key,
        overrides=list(cell.overrides),
        arpo=arpo.__version__,
        steps=len(history),
        before=(summary.get("accuracy_before") or {}).get("mean"),
        after=(summary.get("accuracy_after") or {}).get("mean"),
        seconds=round(sum(summary.get("seconds", {}).values()), 1),
        history={name: [_short(line.get(name)) for line in history] for name in HISTORY},
    )


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _append(path: Path, row: Row) -> None:
    with open_to_append(path) as file:
        cut_unfinished_line(file)  # of a sweep that was killed while it wrote
        file.write(json_line(asdict(row)))
        os.fsync(file.fileno())


def _in_words(row: Row) -> str:
    calls = sum(value or 0 for value in row.history["calls/executed"])
    before, after = ("-" if value is None else f"{100 * value:.1f} %" for value in (row.before, row.after))
    return f"{before} -> {after}, {calls:,} calls, {row.seconds:.0f} s"
