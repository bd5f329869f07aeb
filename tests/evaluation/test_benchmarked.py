"""Asking benchmarks: every answer is on disk at once, nothing is asked twice, what fails is an outcome, parts make a
whole."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from known_answers import SUMS, Played, golds, says, write_played

from arpo.core.record import replay
from arpo.display.terminal import Console
from arpo.errors import ConfigError, EngineError, FormatError
from arpo.evaluation.analysis import keep
from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.manifest import read_manifest
from arpo.evaluation.questions import choose, read_shard
from arpo.evaluation.recompute import show_results
from arpo.evaluation.samples import FILE, NOT_ASKED, NOT_SCORED, read_record, read_samples
from arpo.evaluation.verdicts import Verdict, append_verdict, as_study, read_verdicts
from arpo.evaluation.verdicts import judged as judge_figures
from arpo.recipe.load import load_recipe
from arpo.tools.usage import read_usage
from arpo.view.library import Library
from tiny_project import TinyProject

NUMBERS = itertools.count(1)


def screen() -> Console:
    return Console(file=io.StringIO(), width=140)


@pytest.fixture
def played(tiny_project: TinyProject, tmp_path: Path) -> Played:
    return write_played(tiny_project, tmp_path / "project", next(NUMBERS))


def ask(played: Played, out: Path, *overrides: str, names="gsm8k", **wanted):
    console = screen()
    run = load_recipe(played.recipe, overrides)
    request = EvalRequest(benchmarks=names.split(","), data=played.data, out=out, **wanted)
    [results] = evaluate_model(str(played.recipe), run, request, console=console)
    return results


def test_who_knows_the_golds_is_always_right_and_who_does_not_never(played, tmp_path):
    right = ask(played, tmp_path / "right", names="gsm8k,bamboogle", samples=2)
    assert [(f.name, f.questions, f.answers, f.missing, f.accuracy.mean) for f in right.benchmarks] == [
        ("gsm8k", 12, 24, 0, 1.0),
        ("bamboogle", 6, 12, 0, 1.0),
    ]
    assert right.mean.mean == 1 and right.mean.low < 1 and right.benchmark["bamboogle"].measures["exact"].mean == 1
    played.play({question: says("-77") for question in golds()})
    wrong = ask(played, tmp_path / "wrong", names="gsm8k,bamboogle")
    assert [f.accuracy.mean for f in wrong.benchmarks] == [0, 0] and wrong.mean.high > 0


def test_what_is_left_behind(played, tmp_path):
    out = tmp_path / "out"
    ask(played, out, limit=3)
    results = json.loads((out / "results.json").read_text())
    assert results["schema"] == "arpo/results/2" and results["benchmarks"]["gsm8k"]["accuracy"]["mean"] == 1
    assert "GSM8K" in (out / "report.md").read_text() and "GSM8K" in (out / "report.html").read_text()
    for key, answer in read_samples(out).items():
        record = read_record(out, key)
        assert record is not None and replay(record) == record.tree
        assert answer.answer in answer.transcript and answer.seconds > 0 and answer.read_tokens > 0
    with Library([out]) as library:
        [name] = library.answer("/api/runs")["runs"][0]["evaluations"]
        assert name == "gsm8k"


@pytest.mark.slow
def test_killed_and_resumed_it_asks_nothing_twice(played, tmp_path):
    out = tmp_path / "out"
    plays = {question: {**play, "delay_s": 0.05 * number} for number, (question, play) in enumerate(golds().items())}
    slow = [row["question"] for row in SUMS[6:]]
    played.play({q: {**play, "delay_s": 600 if q in slow else 0} for q, play in plays.items()})
    command = [
        sys.executable,
        "-m",
        "arpo",
        "eval",
        str(played.recipe),
        "--benchmark",
        "gsm8k",
        "--data",
        str(played.data),
    ]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": "src"}
    )
    until = time.monotonic() + 240
    while not ((out / FILE).exists() and len(read_samples(out)) >= 6):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (out / FILE).read_bytes()
    with (out / FILE).open("ab") as file:
        file.write(b'{"schema": "arpo/sample/1", "id": "gsm8k/9", "acc')  # what a kill in the middle of a write leaves
    (played.folder / "asked.log").unlink()
    played.play(golds())
    found = ask(played, out, resume=True)
    assert sorted(played.asked()) == sorted(slow), "only what was not answered is asked"
    after = (out / FILE).read_bytes()
    assert after.startswith(before) and len(after.splitlines()) == 12
    assert found.benchmark["gsm8k"].accuracy.mean == 1 and found.benchmark["gsm8k"].missing == 0
    ask(played, out, resume=True)
    assert (out / FILE).read_bytes() == after


def test_a_resumed_evaluation_may_ask_more(played, tmp_path):
    out = tmp_path / "out"
    ask(played, out, limit=2)
    ask(played, out, limit=5, samples=2, names="gsm8k,bamboogle", resume=True)
    keys = list(read_samples(out))
    assert len(keys) == len(set(keys)) == 20 and len(played.asked()) == 20
    assert [each.questions for each in read_manifest(out).benchmarks] == [5, 5]


def test_answers_to_something_else_are_not_mixed_in(played, tmp_path):
    out = tmp_path / "out"
    ask(played, out, limit=2)
    with pytest.raises(ConfigError, match="not empty"):
        ask(played, out, limit=2)
    for override in ("evaluation.temperature=0.5", "rollout.max_calls=1", "evaluation.seed=4", "chat.result_tokens=99"):
        with pytest.raises(ConfigError, match="something else .*" + override.partition("=")[0].split(".")[1]):
            ask(played, out, override, limit=2, resume=True)
    rows = (played.data / "gsm8k.jsonl").read_text()
    (played.data / "gsm8k.jsonl").write_text(rows.replace("#### 6", "#### 7"))
    with pytest.raises(ConfigError, match="gsm8k: other questions"):
        ask(played, out, limit=2, resume=True)


def test_what_fails_is_an_outcome_with_a_reason(played, tmp_path):
    out, plays = tmp_path / "out", golds()
    plays[SUMS[3]["question"]]["fails_after"] = 0
    rows = (played.data / "gsm8k.jsonl").read_text()
    (played.data / "gsm8k.jsonl").write_text(rows + json.dumps({"question": "Why? " * 9000, "answer": "#### 1"}) + "\n")
    played.play(plays)
    found = ask(played, out).benchmark["gsm8k"]
    assert found.answers == found.questions == 13 and found.missing == 0 and sum(found.failures.values()) == 2
    assert found.accuracy.mean == pytest.approx(11 / 13)
    failed = {a.ending: a.failure for a in read_samples(out).values() if a.failed}
    assert "fails after 0 tokens" in failed["engine_failed"] and "no room" in failed[NOT_ASKED]
    asked = len(played.asked())
    ask(played, out, resume=True)
    assert len(played.asked()) == asked, "a failure is an answer: it is not asked again unless told"
    played.play(golds())
    again = ask(played, out, resume=True, again=True).benchmark["gsm8k"]
    assert again.accuracy.mean == pytest.approx(12 / 13) and len(played.asked()) == asked + 1


def test_a_reward_that_raises_is_an_outcome(played, tmp_path):
    (played.folder / f"picky_{played.folder.parent.name[-1]}.py").write_text(
        "def score(task, transcript):\n    if '9' in task.question:\n        raise ValueError('no nines')\n"
        "    return 1.0\n"
    )
    source = played.data / "own.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    module = f"picky_{played.folder.parent.name[-1]}"
    run = load_recipe(played.recipe, [f"reward={module}:score"])
    request = EvalRequest(benchmarks=[str(source)], out=tmp_path / "out")
    [results] = evaluate_model(str(played.recipe), run, request, console=screen())
    found = results.benchmark["own"]
    nines = [row for row in SUMS if "9" in row["question"]]
    assert found.endings[NOT_SCORED] == len(nines) and all("no nines" in reason for reason in found.failures)
    assert found.accuracy.mean == pytest.approx(1 - len(nines) / 12), (
        "questions of one's own are scored by the recipe's reward"
    )


def test_where_nothing_can_be_answered_it_stops_and_keeps_the_outcomes(played, tmp_path):
    out = tmp_path / "out"
    played.play({question: says("1", fails_after=0) for question in golds()})
    with pytest.raises(EngineError, match="fails after 0 tokens"):
        ask(played, out)
    assert len(read_samples(out)) == 12 and (out / "results.json").exists()
    played.play(golds())
    assert ask(played, out, resume=True, again=True).benchmark["gsm8k"].accuracy.mean == 1


def test_shards_put_together_are_the_whole(played, tmp_path):
    whole = ask(played, tmp_path / "whole", samples=2)
    for number in (1, 2, 3):
        ask(played, tmp_path / f"part{number}", samples=2, shard=(number, 3))
    merged = show_results(
        [tmp_path / f"part{number}" for number in (1, 2, 3)], out=tmp_path / "merged", console=screen()
    )
    ours, theirs = whole.benchmark["gsm8k"], merged.benchmark["gsm8k"]
    assert (theirs.questions, theirs.answers, theirs.missing) == (12, 24, 0)
    assert ours.accuracy == theirs.accuracy and ours.pass_at == theirs.pass_at and ours.by_budget == theirs.by_budget
    two = show_results([tmp_path / "part1", tmp_path / "part2"], out=tmp_path / "two", console=screen())
    assert two.benchmark["gsm8k"].questions == 8
    ask(played, tmp_path / "other", "evaluation.seed=9", samples=2, shard=(3, 3))
    with pytest.raises(ConfigError, match=r"asked otherwise .*seed"):
        show_results([tmp_path / "part1", tmp_path / "other"], out=tmp_path / "none", console=screen())


def test_tool_calls_count_against_a_budget(played, tmp_path):
    plays = golds()
    for row in SUMS[:4]:
        turn = "<parity>3</parity>"
        plays[row["question"]]["turns"] = [turn, *plays[row["question"]]["turns"]]
    played.play(plays)
    found = ask(played, tmp_path / "out").benchmark["gsm8k"]
    assert {budget: estimate.mean for budget, estimate in found.by_budget.items()} == pytest.approx({0: 8 / 12, 1: 1.0})
    assert found.productivity.mean == pytest.approx(12 / 4) and found.costs["tool calls"].mean == pytest.approx(4 / 12)


def test_questions_are_chosen(played):
    def ids(**part):
        return [task.id for each in choose(["gsm8k"], data=played.data, **part) for task in each.tasks]

    assert len(ids()) == 12 and ids(limit=2) == ids()[:2] and ids(ids=(ids()[5],)) == [ids()[5]]
    assert ids(ids=("gsm8k/*",), limit=4) == ids()[:4]
    assert sorted(each for i in range(1, 6) for each in ids(shard=(i, 5))) == sorted(ids())
    assert [each.name for each in choose(["all"], data=played.data)] == ["gsm8k", "bamboogle"]
    with pytest.raises(ConfigError, match=r"--ids.*gsm8k/99"):
        ids(ids=("gsm8k/99",))
    for wrong in ("0/3", "4/3", "a/b", "1", ""):
        with pytest.raises(ConfigError, match="--shard"):
            read_shard(wrong)
    with pytest.raises(ConfigError, match="no such benchmark"):
        choose(["gsm8"])


def test_a_line_that_is_no_answer_is_named(played, tmp_path):
    out = tmp_path / "out"
    ask(played, out, limit=2)
    lines = (out / FILE).read_text().splitlines()
    (out / FILE).write_text(f"{lines[0]}\n" + lines[1].replace('"gold"', '"golden"') + "\n")
    with pytest.raises(FormatError, match=r"samples\.jsonl, line 2"):
        read_samples(out)
    shutil.rmtree(out)


def test_questions_that_the_run_was_trained_on_are_named(tiny_run, played, tmp_path):
    rows = [json.loads(line) for line in (tiny_run.parents[1] / "train.jsonl").read_text().splitlines()[:3]]
    source = played.data / "seen.jsonl"
    source.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"id": "new", "question": "Parity of 99", "answer": "odd"}])
    )
    console = screen()
    request = EvalRequest(benchmarks=[str(source)], out=tmp_path / "out")
    [found] = evaluate_model(str(tiny_run), load_recipe(tiny_run), request, console=console)
    assert (
        "trained on 3 of 4 questions" in console.file.getvalue()
        and "trained on 3 of 4" in (tmp_path / "out" / "report.md").read_text()
    )
    shared = json.loads((tmp_path / "out" / "results.json").read_text())["studies"]["leakage"]["shared"]["seen"]
    assert [(leak["id"], leak["share"]) for leak in shared] == [(row["id"], 1.0) for row in rows] and found.benchmark[
        "seen"
    ].questions == 4


def test_parts_bring_their_tool_calls_studies_and_verdicts(tiny_run, played, tmp_path):
    rows = [json.loads(line) for line in (tiny_run.parents[1] / "train.jsonl").read_text().splitlines()[:3]]
    source = played.data / "both.jsonl"
    source.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"id": "new", "question": "Parity of 99", "answer": "odd"}])
    )
    parts, called = [tmp_path / "part1", tmp_path / "part2"], 0
    for number, part in enumerate(parts, 1):
        request = EvalRequest(benchmarks=[str(source)], out=part, shard=(number, 2))
        evaluate_model(str(tiny_run), load_recipe(tiny_run), request, console=screen())
        called += read_usage(part)["parity"]["asked"]
        judged = [
            Verdict(key=f"{number}", benchmark="both", id=a.id, sample=0, judge="j at u", prompt="p",
                    question=a.question, golds=tuple(a.gold), answer=a.answer, verdict="right", rule=a.accuracy)
            for a in read_samples(part).values()
        ]  # fmt: skip
        for verdict in judged:
            append_verdict(part, verdict)
        keep(part, {"judge": {**as_study(judge_figures(judged), "j at u"), "spent": {"requests": 2}}})
    assert called > 0
    merged = show_results(parts, out=tmp_path / "merged", console=screen())
    assert read_usage(tmp_path / "merged")["parity"]["asked"] == called
    assert {"tools", "leakage", "quality", "judge"} <= merged.studies.keys()
    assert "trained on 3 of 4 questions" in merged.studies["leakage"]["warnings"][0]
    assert len(read_verdicts(tmp_path / "merged")) == 4 and merged.studies["judge"]["spent"] == {"requests": 4}
    assert merged.studies["judge"]["accuracy"]["n"] == 4
    report = (tmp_path / "merged" / "report.md").read_text()
    assert "trained on 3 of 4" in report and "## Tool calls" in report and "## Judged answers" in report


def test_a_resumed_evaluation_keeps_what_was_said_of_training(tiny_run, played, tmp_path):
    rows = [json.loads(line) for line in (tiny_run.parents[1] / "train.jsonl").read_text().splitlines()[:3]]
    for name, rest in (("first", rows), ("second", [{"id": "new", "question": "Parity of 99", "answer": "odd"}])):
        source = played.data / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rest))
        request = EvalRequest(benchmarks=[str(source)], out=tmp_path / "out", resume=name == "second")
        [found] = evaluate_model(str(tiny_run), load_recipe(tiny_run), request, console=screen())
    assert "first: the run was trained on 3 of 3 questions" in found.studies["leakage"]["warnings"][0]
