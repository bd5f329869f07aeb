"""A run as a whole: its recipe and the differences from another recipe, its events, its metrics.

Knows the files of a run's folder, except the trees. A folder with only evaluations is a run without steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.evaluation.manifest import check_form, is_evaluation
from arpo.files import as_json
from arpo.foreign import is_number
from arpo.runs.folder import RunFolder
from arpo.yaml_positions import flat

Answer = dict[str, Any]


def open_run(path: Path) -> RunFolder | None:
    """The run in a folder; None where it holds evaluations alone. Raises ConfigError where it holds neither."""
    check_form(path)
    if (path / "recipe.yaml").is_file():
        return RunFolder(path)
    if is_evaluation(path) or any(map(is_evaluation, (path / "evaluation").glob("*"))):
        return None
    hint = "a run folder has a recipe.yaml; `arpo eval --out DIR` leaves evaluations in DIR"
    raise ConfigError(
        "this folder holds no run" if path.exists() else "there is no such folder", where=str(path), hint=hint
    )


def recipe_of(run: RunFolder | None) -> dict[str, Any]:
    """The current resolved recipe: the one of the last resumption, if it differs."""
    if run is None:
        return {}
    value: dict[str, Any] = as_json(run.recipe_values())
    return value


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Answer]:
    """The keys whose values differ, in the order of the recipe. A missing key counts as null."""
    a, b = flat(here), flat(there)
    keys = [*a, *(key for key in b if key not in a)]
    return [{"key": key, "here": a.get(key), "there": b.get(key)} for key in keys if a.get(key) != b.get(key)]


def events_of(run: RunFolder | None, damage: list[tuple[int, str]]) -> list[Answer]:
    """The events in order of time: starts and resumptions, notes, checkpoints; then damaged logs."""
    if run is None:
        return []
    found = [*_starts(run), *_notes(run), *_checkpoints(run)]
    found.sort(key=lambda event: event["time"] or 0.0)
    return [*found, *(_event(step, None, "warning", "warning", text) for step, text in damage)]


def metrics_answer(run: RunFolder | None, history: Sequence[Mapping[str, Any]], after: int | None) -> Answer:
    """Metrics above step `after` as columns. A resumed run that removes steps rewrites the file: a new generation."""
    if run is None:
        return {"generation": "", "live": False, "steps": [], "series": {}}
    path = run.path / "metrics.jsonl"
    generation = str(path.stat().st_ino) if path.exists() else ""
    lines = [line for line in history if after is None or line["step"] > after]
    series: dict[str, list[float | None]] = {}
    for number, line in enumerate(lines):
        for name, value in line.items():
            if type(value) is float or type(value) is int:  # not bool; a run of 500 steps has 70,000 values
                if name not in series:
                    series[name] = [None] * len(lines)
                series[name][number] = value
    series.pop("step", None)
    return {
        "generation": generation,
        "live": run.is_live(),
        "steps": [line["step"] for line in lines],
        "series": series,
    }


def _event(step: int | None, time: float | None, level: str, kind: str, text: str) -> Answer:
    return {"step": step, "time": time, "level": level, "kind": kind, "text": text}


def _starts(run: RunFolder) -> Iterator[Answer]:
    for number, start in enumerate(run.environment()):
        if isinstance(start, dict):
            text = (
                f"{'resumed' if number else 'started'} on {start.get('cpus', '?')} CPUs, "
                f"{start.get('platform', 'unknown')}"
            )
            yield _event(None, _time(start.get("time")), "info", "resumed" if number else "started", text)


def _notes(run: RunFolder) -> Iterator[Answer]:
    for note in run.notes():
        level = "warning" if note.get("level") == "warning" else "info"
        text, step = str(note.get("text", "")), note.get("step")
        kind = "skipped" if "skipped" in text else "evaluation" if "accuracy" in text else "note"
        kind = "warning" if kind == "note" and level == "warning" else kind
        yield _event(step if isinstance(step, int) else None, _time(note.get("time")), level, kind, text)


def _checkpoints(run: RunFolder) -> Iterator[Answer]:
    """The checkpoints that still exist: older ones are removed (train.keep_last)."""
    for manifest in (run.path / "checkpoints").glob("step-*/MANIFEST.json"):
        number = manifest.parent.name.removeprefix("step-")
        if number.isdecimal():
            yield _event(
                int(number), manifest.stat().st_mtime, "info", "checkpoint", f"checkpoint of step {int(number)}"
            )


def _time(value: object) -> float | None:
    return float(value) if is_number(value) else None
