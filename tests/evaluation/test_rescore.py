"""`arpo results` scores recorded answers with the measures of this version."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

from known_answers import SUMS, write_played
from rich.console import Console

from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.recompute import show_results
from arpo.evaluation.samples import SampleLog, SampleRecord, read_record, read_samples
from arpo.recipe.load import load_recipe
from evaluation_folder import write_evaluation
from tiny_project import TinyProject

REWARD = """
from arpo import Score


def score(task, transcript):
    assert all(turn.text and turn.well_formed for turn in transcript.turns) and transcript.ending == "finished"
    return Score(reward={reward}, accuracy=float(transcript.answer == task.answers[0]))
"""


def sample(name: str, answer: str, accuracy: float, **more: object) -> SampleRecord:
    values = {"benchmark": "math500", "id": name, "metric": "maths", "gold": ("\\frac12",), "reward": accuracy, **more}
    return SampleRecord(answer=answer, accuracy=accuracy, correct=accuracy >= 0.5, **values)


def test_recorded_answers_are_scored_again(tmp_path):
    samples = [
        sample("right", "0.5", 1.0),
        sample("refused-before", "one half", 0.0),
        sample("passed-before", "less than 0.5", 1.0),
        sample("broke-the-protocol", "0.5", 0.0, reward=-1.0),
        sample("of-a-verifier", "anything", 1.0, metric="", benchmark="test"),
        sample("failed", "0.5", 0.0, ending="not_scored", failure="the disk is full"),
    ]
    write_evaluation(tmp_path, samples)
    out = io.StringIO()
    show_results([tmp_path], console=Console(file=out, width=200))
    scores = {key[1]: (found.accuracy, found.reward) for key, found in read_samples(tmp_path).items()}
    assert scores == {
        "right": (1.0, 1.0),
        "refused-before": (1.0, 1.0),
        "passed-before": (0.0, 0.0),
        "broke-the-protocol": (1.0, -1.0),
        "of-a-verifier": (1.0, 1.0),
        "failed": (0.0, 0.0),
    }
    assert "3 answers have another score" in out.getvalue()
    assert "1 answers keep their scores" in out.getvalue(), "whether a verifier scored it is not known"
    before = (tmp_path / "samples.jsonl").read_bytes()
    show_results([tmp_path], console=Console(file=io.StringIO()))
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def rescored(folder: Path) -> str:
    out = io.StringIO()
    show_results([folder], console=Console(file=out, width=300))
    return out.getvalue()


def test_answers_are_scored_again_by_the_reward_and_the_tasks_of_the_recipe(tiny_project: TinyProject, tmp_path: Path):
    played = write_played(tiny_project, tmp_path / "project", 15)
    data = played.data / "gsm8k.jsonl"
    golds = [{**row, "answer": row["answer"].split()[-1]} for row in SUMS[:4]]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*golds, {"question": "?", "answer": "\\frac{1}{"}]))
    code = played.folder / "rescored_reward.py"
    code.write_text(REWARD.format(reward=0.5))
    folders, screens = [], []
    for name, reward in (("own", "reward=rescored_reward:score"), ("auto", "reward.answer=auto")):
        changes = [f"data.test={{source: {data}}}", "evaluation={limit: 4, greedy_limit: 0}", reward]
        screens.append(io.StringIO())
        run, request = load_recipe(played.recipe, changes), EvalRequest(out=tmp_path / name)
        evaluate_model(str(played.recipe), run, request, console=Console(file=screens[-1], width=300))
        folders += (tmp_path / name / "evaluation").iterdir()
    own, auto = folders
    assert "warning: test: 1 golds that answers can equal only as the same text" in screens[1].getvalue()
    assert "warning" not in screens[0].getvalue(), "a reward of one's own reads golds as it likes"

    code.write_text(REWARD.format(reward=0.75))  # of another length: Python compares sizes, and times to a second
    del sys.modules["rescored_reward"]
    with SampleLog(auto) as log:  # as an earlier version scored them
        for key, found in read_samples(auto).items():
            log.append(replace(found, accuracy=0.0, correct=False, reward=0.0), read_record(auto, key))
    for folder, reward in ((own, 0.75), (auto, 1.0)):
        said = rescored(folder)
        assert "4 answers have another score" in said and "keep their scores" not in said
        samples = read_samples(folder)
        assert {(found.accuracy, found.reward) for found in samples.values()} == {(1.0, reward)}
        records = [read_record(folder, key) for key in samples]
        assert [score.reward for record in records if record for score in record.scores.values()] == [reward] * 4
    data.unlink()
    for folder in folders:
        before = (folder / "samples.jsonl").read_bytes()
        assert "4 answers keep their scores, since they cannot be scored again: data.test.source" in rescored(folder)
        assert (folder / "samples.jsonl").read_bytes() == before
