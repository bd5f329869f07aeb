"""Evaluations that somebody else made: a named error, or figures."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arpo.errors import FormatError
from arpo.evaluation.manifest import FILE as MANIFEST
from arpo.evaluation.manifest import read_manifest
from arpo.evaluation.results import FILE as RESULTS
from arpo.evaluation.results import EvalResults, read_results
from arpo.evaluation.samples import FILE as SAMPLES
from arpo.evaluation.samples import SampleLog, SampleRecord, read_samples
from arpo.evaluation.trajectories import read_recorded
from arpo.evaluation.verdicts import FILE as VERDICTS
from arpo.evaluation.verdicts import Verdict, append_verdict, read_verdicts
from arpo.rewards.judge import read_verdict
from evaluation_folder import write_evaluation

ODD = [None, True, -1, 10**60, 10**400, math.inf, 1.5, "", "x\x1b[31m", [], [[]], {}, {"a": None}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [
        SampleRecord(
            benchmark="b",
            id=f"q{number}",
            family="f",
            gold=("1",),
            accuracy=number % 2,
            correct=bool(number % 2),
            reward=0.5,
            measures={"f1": 0.5},
            calls=number,
            ending="finished",
        )
        for number in range(2)
    ]
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(folder, samples)
    return folder


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], new)
    return copy


def figures(folder: Path) -> None:
    EvalResults.from_samples(read_manifest(folder), read_samples(folder).values())


@pytest.mark.parametrize(("name", "read"), [(MANIFEST, read_manifest), (SAMPLES, figures), (RESULTS, read_results)])
def test_any_value_anywhere_gives_figures_or_an_error_that_names_the_file(
    folder: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = folder / name
    text = path.read_text()
    value = json.loads(text.splitlines()[0] if name == SAMPLES else text)
    try:
        for at in [place for place in places(value) if "studies" not in place]:
            for new in ODD:
                path.write_text(json.dumps(changed(value, at, new)) + "\n")
                try:
                    read(folder)
                except FormatError as error:
                    assert name in str(error) and len(str(error)) < 1_000, (at, new)
    finally:
        path.write_text(text)


NAMED = '{"schema": "arpo/sample/1", "benchmark": "a", "id": "b", "sample": 0, "record": '


@pytest.mark.parametrize(
    ("line", "where"),
    [
        *((line, "line 1") for line in ("{}", "[]", '{"schema": "arpo/sample/1", "id": ["a"]}')),
        *((f"{NAMED}{record}}}", "the record of 'b'") for record in ("3", "[]", "{}", '{"schema": 2, "task": 1}')),
    ],
)
def test_a_line_that_holds_no_sample_is_an_error(folder: Path, tmp_path: Path, line: str, where: str) -> None:
    (tmp_path / MANIFEST).write_text((folder / MANIFEST).read_text())
    (tmp_path / SAMPLES).write_text(line + "\n")
    with pytest.raises(FormatError, match=rf"samples\.jsonl.*{where}"):
        list(read_recorded(tmp_path))


def test_nothing_is_cut_off_or_added_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("export A=1\nno line end")
    for name in (SAMPLES, VERDICTS):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(FormatError, match=VERDICTS):
        read_verdicts(tmp_path)
    verdict = Verdict(
        key="k",
        benchmark="b",
        id="q",
        sample=0,
        judge="",
        prompt="",
        question="",
        golds=(),
        answer=None,
        verdict="none",
    )
    for write in (lambda: SampleLog(tmp_path), lambda: append_verdict(tmp_path, verdict)):
        with pytest.raises(FormatError, match="is a link"):
            write()
    assert victim.read_text() == "export A=1\nno line end"


@pytest.mark.parametrize("brace", ["{", '{"', "{ ", "}{"])
def test_a_judge_s_braces_are_read_in_one_go(brace: str) -> None:
    assert "no JSON object" in read_verdict(brace * 1_000_000)
