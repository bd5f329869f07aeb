"""Further looks at recorded answers: tool-call quality, entropies around tool results, a judge beside the rule.

Knows what is kept where: under "studies" in an evaluation's results.json, from which its reports show it. Studies of runs are
printed, and written where they are wanted. How each figure is had, `quality`, `entropy`, `judge` and `verdicts` know.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from arpo.errors import ConfigError
from arpo.evaluation import entropy, quality, verdicts
from arpo.evaluation.benchmark_results import FILE as RESULTS
from arpo.evaluation.benchmark_results import read_results_file, read_studies
from arpo.evaluation.judge import Judge, judge_answers
from arpo.evaluation.manifest import is_evaluation, read_manifest
from arpo.evaluation.reports import write_all
from arpo.evaluation.samples import read_samples
from arpo.evaluation.trajectories import read_recorded
from arpo.event_loop import run_sync
from arpo.files import as_seen_from_here, write_json
from arpo.recipe.evaluation import JudgeConfig

Study = Mapping[str, Any]


def analyse(
    paths: Sequence[Path],
    *,
    entropies: bool = False,
    judge: JudgeConfig | None = None,
    out: Path | None = None,
    console: Console | None = None,
    shown: bool = True,
) -> dict[str, Study]:
    """Study evaluations and runs, several side by side; tool-call quality always. Returns the studies by name.

    Of one evaluation they are kept in its folder; elsewhere `out` gets study.json and the pictures. Raises ConfigError and
    FormatError; ToolsStoppedError where a judge cannot go on (what it said is kept).
    """
    console = console or Console(soft_wrap=True)
    if judge is not None and not all(map(is_evaluation, paths)):
        raise ConfigError("a judge looks at evaluations", where="--judge", hint="those that `arpo eval --benchmark` wrote")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [as_seen_from_here(path) for path in paths]
    found: dict[str, Study] = {}
    kept = len(paths) == 1 and is_evaluation(paths[0])
    pictures = paths[0] if kept else out
    found["quality"] = quality.as_study({name: quality.quality(read_recorded(p)) for name, p in zip(names, paths, strict=True)})
    if entropies:
        for name, path in zip(names, paths, strict=True):
            measured = entropy.entropy_study(read_recorded(path))
            key = "entropy" if len(paths) == 1 else f"entropy of {name}"
            found[key] = entropy.as_study(measured)
            picture = f"plots/{_file(key)}.png"
            if pictures is not None and (drawn := entropy.draw_entropy(pictures / picture, measured)):
                console.print(f"drawn: {drawn}", highlight=False, markup=False)
                found[key] = {**found[key], "pictures": [{"title": entropy.TITLE, "path": picture, "says": measured.claim}]}
    for name, path in zip(names, paths, strict=True):
        if judge is not None:
            said = judge_evaluation(path, judge, console)
            found["judge" if len(paths) == 1 else f"judge of {name}"] = said
    for path in paths if kept else ():
        keep(path, found)
    if out is not None and not kept:
        write_json(out / "study.json", {"schema": "arpo/study/1", "of": names, "studies": found})
    for each in found.values() if shown else ():
        show(console, each)
    return found


def judge_evaluation(folder: Path, config: JudgeConfig, console: Console) -> Study:
    """Have every answer in `folder` judged that is not yet; verdicts are kept one by one."""
    answers = list(read_samples(folder).values())
    model = Judge(config, tell=lambda text, level: console.print(f"{level}: {text}", highlight=False, markup=False))
    model.ready()

    async def run() -> list[verdicts.Verdict]:
        try:
            with console.status("judging") as status:
                return await judge_answers(model, answers, folder, watch=lambda n, of: status.update(f"judging: {n:,}/{of:,}"))
        finally:
            await model.close()

    found = run_sync(run())
    spent = model.endpoint.spent
    earlier = read_studies(folder).get("judge", {}).get("spent", {})
    console.print(f"judge: {spent}", highlight=False, markup=False)
    return {
        **verdicts.as_study(verdicts.judged(found), model.name),
        "spent": {name: value + earlier.get(name, 0) for name, value in spent.plain().items()},
    }


def keep(folder: Path, studies: Mapping[str, Study]) -> None:
    """Put studies into FOLDER/results.json, and write its reports anew."""
    asked = read_manifest(folder)
    if not (folder / RESULTS).is_file():
        write_all(folder, asked)
    value = read_results_file(folder)
    value["studies"] = {**value["studies"], **studies}
    write_json(folder / RESULTS, value)
    write_all(folder, asked)


def show(console: Console, found: Study) -> None:
    """Print a study's tables and warnings."""
    for given in found["tables"]:
        table = Table(title=given["title"], title_justify="left", caption=given.get("note") or None, caption_justify="left")
        for number, name in enumerate(given["head"]):
            table.add_column(Text(name), justify="left" if number == 0 else "right")
        for row in given["rows"]:
            table.add_row(*map(Text, row))
        console.print(table)
    for warning in found.get("warnings", ()):
        console.print(f"warning: {warning}", highlight=False, markup=False)


def _file(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name)
