"""`arpo results` scores recorded answers with the measures of this version."""

import io

from rich.console import Console

from arpo.evaluation.recompute import show_results
from arpo.evaluation.samples import SampleRecord, read_samples
from evaluation_folder import write_evaluation


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
    before = (tmp_path / "samples.jsonl").read_bytes()
    show_results([tmp_path], console=Console(file=io.StringIO()))
    assert (tmp_path / "samples.jsonl").read_bytes() == before
