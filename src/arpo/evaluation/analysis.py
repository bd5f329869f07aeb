"""Studies of recorded samples: tool-call quality, entropies around tool results, a judge beside the rule, questions
trained on.

Knows where a study is kept: under "studies" in an evaluation's results.json, from which its reports show it. Studies of
runs are printed, and written where they are wanted. How each figure is computed, `quality`, `entropy`, `judge` and
`verdicts` know.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arpo.assembly.components import read_tasks
from arpo.display.terminal import Console
from arpo.endpoint.config import EndpointConfig
from arpo.errors import ArpoError, ConfigError, first_line
from arpo.evaluation import entropy, quality, verdicts
from arpo.evaluation.judge import Judge, judge_answers
from arpo.evaluation.manifest import EvalManifest, check_form, is_evaluation, read_manifest
from arpo.evaluation.questions import BenchmarkQuestions
from arpo.evaluation.reports import study_tables, write_all
from arpo.evaluation.results import read_studies, summarise
from arpo.evaluation.samples import read_samples
from arpo.evaluation.trajectories import read_recorded
from arpo.event_loop import run_sync
from arpo.files import as_seen_from_here, write_json
from arpo.recipe.load import load_recipe
from arpo.tasks.leakage import Leak, Leakage, leaks

Study = Mapping[str, Any]
OVERLAP = "leakage"  # the study of questions that the model was trained on


def analyse(
    paths: Sequence[Path],
    *,
    entropies: bool = False,
    judge: EndpointConfig | None = None,
    out: Path | None = None,
    console: Console | None = None,
    shown: bool = True,
) -> dict[str, Study]:
    """Study evaluations and runs, several side by side; tool-call quality always. Returns the studies by name.

    Of one evaluation they are kept in its folder; elsewhere `out` gets study.json and the pictures. Raises ConfigError
    and FormatError; ToolsStoppedError where a judge cannot go on (what it said is kept).
    """
    console = console or Console(soft_wrap=True)
    if judge is not None and not all(map(is_evaluation, paths)):
        raise ConfigError(
            "a judge looks at evaluations", where="--judge", hint="those that `arpo eval --benchmark` wrote"
        )
    for path in paths:
        check_form(path)
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [as_seen_from_here(path) for path in paths]
    by_name: dict[str, Study] = {}
    kept = len(paths) == 1 and is_evaluation(paths[0])
    pictures = paths[0] if kept else out
    by_name["quality"] = quality.as_study(
        {name: quality.quality(read_recorded(p)) for name, p in zip(names, paths, strict=True)}
    )
    if entropies:
        for name, path in zip(names, paths, strict=True):
            measured = entropy.entropy_study(read_recorded(path))
            key = "entropy" if len(paths) == 1 else f"entropy of {name}"
            by_name[key] = entropy.as_study(measured)
            picture = f"plots/{_file(key)}.png"
            if pictures is not None and (drawn := entropy.draw_entropy(pictures / picture, measured)):
                console.print(f"drawn: {drawn}")
                by_name[key] = {
                    **by_name[key],
                    "pictures": [{"title": entropy.TITLE, "path": picture, "says": measured.claim}],
                }
    for name, path in zip(names, paths, strict=True):
        if judge is not None:
            judged = judge_evaluation(path, judge, console)
            by_name["judge" if len(paths) == 1 else f"judge of {name}"] = judged
    for path in paths if kept else ():
        keep(path, by_name)
        write_all(path, read_manifest(path))
    if out is not None and not kept:
        write_json(out / "study.json", {"schema": "arpo/study/1", "of": names, "studies": by_name})
    for each in by_name.values() if shown else ():
        show(console, each)
    return by_name


def judge_evaluation(folder: Path, config: EndpointConfig, console: Console) -> Study:
    """Have every answer in `folder` judged that is not yet; verdicts are kept one by one."""
    answers = list(read_samples(folder).values())
    model = Judge(config, tell=lambda text, level: console.print(f"{level}: {text}"))
    model.ready()

    async def run() -> list[verdicts.Verdict]:
        try:
            with console.status("judging") as status:
                return await judge_answers(
                    model, answers, folder, watch=lambda n, of: status.update(f"judging: {n:,}/{of:,}")
                )
        finally:
            await model.close()

    judgements = run_sync(run())
    spent = model.endpoint.spent
    earlier = read_studies(folder).get("judge", {}).get("spent", {})
    console.print(f"judge: {spent}")
    return {
        **verdicts.as_study(verdicts.judged(judgements), model.name),
        "spent": {name: value + earlier.get(name, 0) for name, value in spent.plain().items()},
    }


def keep(folder: Path, studies: Mapping[str, Study]) -> None:
    """Put studies into FOLDER/results.json."""
    summarise(folder, read_manifest(folder), studies=studies)


def show(console: Console, study: Study) -> None:
    """Print a study's tables and warnings."""
    for table in study_tables(study):
        console.print(table.rich())
    for warning in study.get("warnings", ()):
        console.print(f"warning: {warning}")


def _file(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name)


# --- questions that the model was trained on


def training_overlap(run: Path | None, chosen: Sequence[BenchmarkQuestions]) -> dict[str, Any]:
    """A study of the questions of `chosen` that the run in the folder `run` was trained on: warnings, and leaks by
    benchmark. Nothing for a model of no run: what that was trained on is not known."""
    if run is None:
        return {}
    try:
        training, _ = read_tasks(load_recipe(run), "train")
    except ArpoError as error:
        return {
            "warnings": [
                f"the training tasks cannot be read, so nothing is known of shared questions ({first_line(error)})"
            ]
        }
    leakage = {each.name: leaks(each.tasks, training) for each in chosen}
    return {
        "warnings": [_says(each.title, leakage[each.name]) for each in chosen if leakage[each.name]],
        "shared": {name: [asdict(leak) for leak in leaked.leaks] for name, leaked in leakage.items()},
        "training_tasks": len(training),
    }


def merge_overlaps(studies: Iterable[Mapping[str, Any]], manifest: EvalManifest) -> dict[str, Any]:
    """Such studies of parts of what `manifest` asks, or of what was asked before and now, as one. Nothing where there
    is none."""
    overlaps = [study for study in studies if study]
    if len(overlaps) < 2:
        return dict(overlaps[0]) if overlaps else {}
    shared: dict[str, dict[str, Leak]] = {}
    for name, entries in ((name, entries) for study in overlaps for name, entries in study.get("shared", {}).items()):
        shared.setdefault(name, {}).update(
            {entry["id"]: Leak(**{"question": entry["id"], **entry}) for entry in entries}
        )
    ordered = {name: sorted(leaks.values(), key=lambda leak: -leak.share) for name, leaks in shared.items()}
    unread = [text for study in overlaps if "shared" not in study for text in study["warnings"]]
    says = [
        _says(each.title, Leakage(each.questions, tuple(ordered[each.name])))
        for each in manifest.benchmarks
        if ordered.get(each.name)
    ]
    return {
        "warnings": [*dict.fromkeys(unread), *says],
        "shared": {name: [asdict(leak) for leak in leaks] for name, leaks in ordered.items()},
        "training_tasks": max(study.get("training_tasks", 0) for study in overlaps),
    }


def _says(title: str, leakage: Leakage) -> str:
    return f"{title}: the run was trained on {leakage}"
