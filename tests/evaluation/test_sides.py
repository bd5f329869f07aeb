"""Evaluations side by side: differences are paired, changed questions are named, seeds are put together."""

import io
import json

import pytest

from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.comparison import read_comparison
from arpo.evaluation.comparison_tables import compare
from arpo.evaluation.manifest import BenchmarkManifest, EvalManifest, write_manifest
from arpo.evaluation.samples import SampleLog, SampleRecord


def evaluation(folder, right, *, model="a", seed=0, questions=20, digest="d"):
    """`right`: numbers of the questions that are answered rightly."""
    ids = tuple(f"q/{n}" for n in range(questions))
    benchmark = BenchmarkManifest(
        name="own", title="Own", metric="exact", judged=False, ids=ids, num_all=questions, digest=digest
    )
    settings = {"temperature": 1.0, "top_p": 1.0, "seed": seed, "max_calls": 3, "branch_tokens": 100}
    folder.mkdir(parents=True)
    write_manifest(
        folder,
        EvalManifest(
            name="own",
            model=model,
            recipe="r",
            preset="",
            benchmarks=(benchmark,),
            samples=1,
            settings=settings,
            decides={},
        ),
    )
    with SampleLog(folder) as log:
        for n, id in enumerate(ids):
            ok = n in right
            said = "yes" if ok else f"wrong {n}"
            answer = SampleRecord(
                benchmark="own", id=id, accuracy=float(ok), correct=ok, reward=float(ok), answer=said, gold=("yes",),
                question=f"Question {n}?", calls=n % 3, ending="finished",
            )  # fmt: skip
            log.append(answer, None)
    return folder


def test_changed_questions_are_named_and_differences_paired(tmp_path):
    a = evaluation(tmp_path / "before", {0, 1, 2, 3})
    b = evaluation(tmp_path / "after", {1, 2, 3, 4, 5, 6, 7, 8}, model="b")
    console = Console(file=io.StringIO(), width=200)
    paired = compare([a, b], tmp_path / "out", console=console).difference("after", "own")
    assert paired.difference.mean == pytest.approx(4 / 20) and paired.difference.low < 0.2 < paired.difference.high
    assert paired.p_value == pytest.approx(2 * (1 + 6) / 2**6), "one lost and five gained: sign flips counted by hand"
    changed = [json.loads(line) for line in (tmp_path / "out" / "changed.jsonl").read_text().splitlines()]
    assert [c["id"] for c in changed] == ["q/0", "q/4", "q/5", "q/6", "q/7", "q/8"]
    assert changed[0]["answers_before"] == ["yes"] and changed[0]["answers_after"] == ["wrong 0"]
    for shown in (console.file.getvalue(), (tmp_path / "out" / "comparison.md").read_text()):
        assert "lost" in shown and "q/0" in shown and "gained" in shown and "+20.0" in shown


def test_seeds_of_one_model_are_one_side(tmp_path):
    a = [evaluation(tmp_path / f"a-{seed}", set(range(seed + 3)), seed=seed) for seed in range(3)]
    b = [evaluation(tmp_path / f"b-{seed}", set(range(10)), model="b", seed=seed) for seed in range(3)]
    found = read_comparison([*a, *b])
    first, second = found.methods
    assert first == "a-0 and 2 more seeds"
    assert found.accuracy(first, "own").n == 3 and found.accuracy(first, "own").mean == pytest.approx(4 / 20)
    assert found.accuracy(second, "own").mean == 0.5 and len(found.methods[first]) == 3
    assert len(read_comparison(a).methods) == 3, "seeds alone are compared with each other"


def test_other_questions_under_one_name_are_told(tmp_path):
    a, b = evaluation(tmp_path / "a", {1}), evaluation(tmp_path / "b", {1}, model="b", digest="e", questions=10)
    console = Console(file=io.StringIO(), width=200)
    found = compare([a, b], console=console)
    assert found.difference("b", "own").difference.n == 10 and "other questions" in console.file.getvalue()


def test_evaluations_are_not_compared_with_runs(tmp_path, tiny_run):
    a = evaluation(tmp_path / "a", {1})
    with pytest.raises(ConfigError, match="compared with evaluations"):
        read_comparison([a, tiny_run])
    with pytest.raises(ConfigError, match="at least two"):
        read_comparison([a])
