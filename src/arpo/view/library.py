"""Answers requests about runs (viewer/src/api.ts lists them).

Knows paths like `/api/runs/{run}/trees` and their queries. Refuses to know HTTP: the server and the export both use it.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import arpo
from arpo.core.record import TreeRecord
from arpo.errors import ConfigError
from arpo.files import as_json
from arpo.runs.folder import RunFolder
from arpo.view import overview
from arpo.view.entropies import entropy_answer
from arpo.view.evaluations import Evaluations, evaluation_answer, sample_answer
from arpo.view.index import RunIndex
from arpo.view.memo import Memo
from arpo.view.pieces import Pieces
from arpo.view.query import Query
from arpo.view.table import no_table, table_answer
from arpo.view.trees import tokens_answer, tree_answer

Answer = dict[str, Any]
_LOOK_AGAIN_S = 1.0  # interval of looking for new steps in the logs
_QUIET_S = 0.25  # time without a request before the next step is read: a page sends several in a row and waits for each
_PATIENCE_S = 0.5  # after this time the step is read in any case
_MOST_WINDOWS = 20


class NotHereError(ConfigError):
    """The requested run, tree or path does not exist."""


@dataclass(eq=False)
class Viewed:
    """One run with everything that its answers need. `run` is None for a folder with only evaluations."""

    id: str
    path: Path
    run: RunFolder | None
    index: RunIndex | None
    evaluations: Evaluations
    _last: tuple[int, int, str, TreeRecord] | None = field(default=None, repr=False)  # index version, step, task

    @cached_property
    def recipe(self) -> Memo[dict[str, Any]]:
        files = [] if self.run is None else [self.path / name for name in ("recipe.yaml", "recipe.resumed.yaml")]
        return Memo(lambda: overview.recipe_of(self.run), *files)

    @cached_property
    def history(self) -> Memo[list[dict[str, Any]]]:
        """The metrics, one dict per step."""
        run = self.run
        return Memo(list) if run is None else Memo(run.metrics, run.path / "metrics.jsonl")

    @cached_property
    def pieces(self) -> Pieces | None:
        return Pieces.from_run(self.path)

    def record(self, step: int, task: str) -> TreeRecord:
        """The tree of a task. The last one stays in memory, since requests for its segments follow."""
        found = self._last
        if found is None or found[:3] != (self.index.version if self.index else 0, step, task):
            record = self.index.record(step, task) if self.index else None
            if record is None or self.index is None:
                damage = [text for at, text in self.index.errors() if at == step] if self.index else []
                wrong, value = "there is no such tree", f"step {step}, task {task}"
                raise NotHereError(wrong, where=str(self.path), value=value, hint="; ".join(damage))
            found = self._last = (self.index.version, step, task, record)
        return found[3]


class Library:
    """The runs on the page. A context manager: inside it, a thread indexes the logs that are new or have grown."""

    def __init__(self, paths: Sequence[Path], *, cache: Path | None = None) -> None:
        """`cache` holds the indexes (default: the user's cache). Raises ConfigError for a folder without a run."""
        self.runs: dict[str, Viewed] = {}
        for path in dict.fromkeys(Path(os.path.realpath(path)) for path in paths):
            run = overview.open_run(path)
            name = _new_id(path, self.runs)
            self.runs[name] = Viewed(name, path, run, None if run is None else RunIndex(run, cache), Evaluations(path))
        self._stop = threading.Event()
        self._asked = time.monotonic()  # time of the last request or answer
        self._thread = threading.Thread(target=self._keep_up, name="arpo-view-index", daemon=True)

    def __enter__(self) -> "Library":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.close()

    def close(self) -> None:
        for viewed in self.runs.values():
            if viewed.index is not None:
                viewed.index.close()

    def _keep_up(self) -> None:
        while not self._stop.is_set():
            for viewed in self.runs.values():
                if viewed.index is not None:
                    viewed.index.catch_up(self._go_on)
            self._stop.wait(_LOOK_AGAIN_S)

    def _go_on(self) -> bool:
        """Wait while requests arrive, since reading a step takes the interpreter lock from the answering thread.
        Returns False when the library is closed."""
        patience = time.monotonic() + _PATIENCE_S
        while (now := time.monotonic()) < min(self._asked + _QUIET_S, patience):
            self._stop.wait(min(self._asked + _QUIET_S, patience) - now)
            if self._stop.is_set():
                break
        return not self._stop.is_set()

    def catch_up(self) -> None:
        """Index all existing steps."""
        for viewed in self.runs.values():
            if viewed.index is not None:
                viewed.index.catch_up()

    def answer(self, path: str, given: Mapping[str, str] | None = None, *, most_rows: int | None = None) -> Answer:
        """The answer to `path` with the values of its query. Raises NotHereError, and ConfigError for an invalid
        query."""
        self._asked = time.monotonic()
        try:
            return self._answer(path, given, most_rows)
        finally:
            self._asked = time.monotonic()

    def _answer(self, path: str, given: Mapping[str, str] | None, most_rows: int | None) -> Answer:
        query = Query(given) if most_rows is None else Query(given, most_rows=most_rows)
        parts = path.strip("/").split("/")
        if parts == ["api", "runs"]:
            query.finish()
            return {"version": arpo.__version__, "runs": [self._summary(viewed) for viewed in self.runs.values()]}
        if parts[:2] != ["api", "runs"] or len(parts) not in (3, 4) or (len(parts) == 4 and parts[3] not in _ANSWERS):
            raise NotHereError("nothing is served here", value=path[:200])
        viewed = self._viewed(parts[2])
        if len(parts) == 3:
            return self._run(viewed, query)
        return _ANSWERS[parts[3]](viewed, query)

    def _viewed(self, name: str) -> Viewed:
        if name not in self.runs:
            raise NotHereError("there is no such run", value=name[:200], hint=f"known: {', '.join(self.runs)}")
        return self.runs[name]

    def _summary(self, viewed: Viewed) -> Answer:
        run, recipe = viewed.run, viewed.recipe.get()
        rollout = _group(recipe.get("rollout"))
        return {
            "id": viewed.id,
            "name": str(recipe.get("name") or viewed.path.name),
            "path": str(viewed.path),
            "kind": "evaluation" if run is None else "training",
            "state": viewed.evaluations.state() if run is None else run.state(),
            "live": viewed.evaluations.is_live() if run is None else run.is_live(),
            "steps": len(viewed.history.get()),
            "trees": bool(run and run.event_steps()),
            "rule": as_json(_group(rollout.get("rule")).get("rule")),
            "leaves": as_json(rollout.get("leaves")),
            "seed": as_json(recipe.get("seed")),
            "evaluations": viewed.evaluations.names(),
        }

    def _run(self, viewed: Viewed, query: Query) -> Answer:
        against = query.text("against")
        query.finish()
        recipe, run = viewed.recipe.get(), viewed.run
        there = None if against is None else self._viewed(against).recipe.get()
        return {
            "id": viewed.id,
            "name": str(recipe.get("name") or viewed.path.name),
            "recipe": recipe,
            "differences": None if there is None else overview.differences(recipe, there),
            "environment": as_json(run.environment()) if run else [],
            "events": overview.events_of(run, viewed.index.errors() if viewed.index else []),
            "evaluations": viewed.evaluations.summaries(),
            "summary": as_json(run.summary()) if run else {},
        }


def _metrics(viewed: Viewed, query: Query) -> Answer:
    after = query.maybe_whole("after")
    query.finish()
    return overview.metrics_answer(viewed.run, viewed.history.get(), after)


def _trees(viewed: Viewed, query: Query) -> Answer:
    return no_table() if viewed.index is None else table_answer(viewed.index, query)


def _tree(viewed: Viewed, query: Query) -> Answer:
    step, task = query.whole("step", -1), query.needed("task")
    query.finish()
    return tree_answer(viewed.record(step, task), viewed.pieces)


def _tokens(viewed: Viewed, query: Query) -> Answer:
    step, task, node = query.whole("step", -1), query.needed("task"), query.needed("node")
    query.finish()
    return tokens_answer(viewed.record(step, task), node, viewed.pieces)


def _entropy(viewed: Viewed, query: Query) -> Answer:
    windows = query.whole("windows", 4, least=1, most=_MOST_WINDOWS)
    query.finish()
    if viewed.index is None:
        empty: Answer = {name: [] for name in ("tools", "windows", "curves", "calibration", "rises", "payoffs")}
        return {"indexed": {"steps": 0, "of": 0}, **empty}
    return entropy_answer(viewed.index, windows)


def _evaluation(viewed: Viewed, query: Query) -> Answer:
    return evaluation_answer(viewed.evaluations, query.needed("name"), query)


def _sample(viewed: Viewed, query: Query) -> Answer:
    name, id, number = query.needed("name"), query.needed("id"), query.whole("sample", 0)
    query.finish()
    return sample_answer(viewed.evaluations, name, id, number, viewed.pieces)


_ANSWERS: Mapping[str, Callable[[Viewed, Query], Answer]] = {
    "metrics": _metrics,
    "trees": _trees,
    "tree": _tree,
    "tokens": _tokens,
    "entropy": _entropy,
    "evaluation": _evaluation,
    "sample": _sample,
}


def _group(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _new_id(path: Path, taken: Mapping[str, object]) -> str:
    """A name for URLs: the folder's name in ASCII, with a number if that is taken."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name).strip("-.") or "run"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def as_text(answer: Answer) -> str:
    """JSON in ASCII. Numbers that are not finite become null; lone surrogates, which hostile text may contain, arrive
    unchanged."""
    try:
        return json.dumps(answer, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(as_json(answer), separators=(",", ":"))
