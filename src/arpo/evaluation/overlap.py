"""Whether what is asked was trained on: a benchmark's questions in the training set of the run that is measured.

Knows where a run's training tasks are named. How questions are compared, `arpo.tasks.leakage` knows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arpo.assembly.components import read_tasks
from arpo.errors import ArpoError, first_line
from arpo.evaluation.manifest import EvalManifest
from arpo.evaluation.questions import BenchmarkQuestions
from arpo.recipe.load import load_recipe
from arpo.tasks.leakage import Leak, Leakage, leaks

STUDY = "leakage"


def training_overlap(run: Path | None, chosen: Sequence[BenchmarkQuestions]) -> dict[str, Any]:
    """A study of the questions of `chosen` that the run in the folder `run` was trained on: warnings, and leaks by benchmark.
    Nothing for a model of no run: what that was trained on is not known."""
    if run is None:
        return {}
    try:
        training, _ = read_tasks(load_recipe(run), "train")
    except ArpoError as error:
        return {"warnings": [f"the training tasks cannot be read, so nothing is known of shared questions ({first_line(error)})"]}
    found = {each.name: leaks(each.tasks, training) for each in chosen}
    return {
        "warnings": [_says(each.title, found[each.name]) for each in chosen if found[each.name]],
        "shared": {name: [asdict(leak) for leak in leaked.leaks] for name, leaked in found.items()},
        "training_tasks": len(training),
    }


def together(studies: Iterable[Mapping[str, Any]], asked: EvalManifest) -> dict[str, Any]:
    """Such studies of parts of what was `asked`, or of what was asked before and now, as one. Nothing where there is none."""
    given = [study for study in studies if study]
    if len(given) < 2:
        return dict(given[0]) if given else {}
    shared: dict[str, dict[str, Leak]] = {}
    for name, entries in ((name, entries) for study in given for name, entries in study.get("shared", {}).items()):
        shared.setdefault(name, {}).update({entry["id"]: Leak(**{"question": entry["id"], **entry}) for entry in entries})
    ordered = {name: sorted(found.values(), key=lambda leak: -leak.share) for name, found in shared.items()}
    unread = [text for study in given if "shared" not in study for text in study["warnings"]]
    says = [
        _says(each.title, Leakage(each.questions, tuple(ordered[each.name]))) for each in asked.benchmarks if ordered.get(each.name)
    ]
    return {
        "warnings": [*dict.fromkeys(unread), *says],
        "shared": {name: [asdict(leak) for leak in found] for name, found in ordered.items()},
        "training_tasks": max(study.get("training_tasks", 0) for study in given),
    }


def _says(title: str, found: Leakage) -> str:
    return f"{title}: the run was trained on {found}"
