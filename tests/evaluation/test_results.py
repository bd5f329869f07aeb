"""One form of results for all evaluations: written, read back, and refused where it is something else."""

import json
from dataclasses import replace

import pytest
from synthetic_run import evaluation, some_samples

from arpo.errors import FormatError
from arpo.evaluation.manifest import read_manifest
from arpo.evaluation.results import EvalResults, by_name, read_evaluations, read_results
from arpo.evaluation.samples import SampleRecord
from evaluation_folder import write_evaluation


def sample(id: str, number: int = 0, accuracy: float = 1.0, benchmark: str = "own") -> SampleRecord:
    right = accuracy == 1
    return SampleRecord(benchmark=benchmark, id=id, sample=number, accuracy=accuracy, correct=right, reward=accuracy)


def test_results_read_back_as_they_were_written(tmp_path):
    made = evaluation(tmp_path / "after", 0.6, questions=12, samples=4)
    assert str(read_results(tmp_path / "after")) == str(made)  # as text: NaN is not equal to itself
    [figures] = made.benchmarks
    assert sorted(figures.pass_at) == [1, 2, 4]
    assert figures.questions == 12 and made.accuracy.mean == pytest.approx(figures.pass_at[1].mean)


def test_figures_do_not_depend_on_the_order_of_samples(tmp_path):
    made = evaluation(tmp_path / "x", 0.5, questions=9, samples=3)
    turned = some_samples("x", 0.5, questions=9, samples=3)[::-1]
    assert str(EvalResults.from_samples(made.manifest, turned, seconds=made.seconds)) == str(made)


def test_accuracy_by_question_is_a_mean_over_samples(tmp_path):
    made = write_evaluation(tmp_path / "x", [sample("a", i, accuracy) for i, accuracy in enumerate((0.0, 1.0))])
    assert made.by_question == {"a": 0.5}


def test_pass_at_k_for_what_every_question_allows(tmp_path):
    samples = [sample(q, i) for q, n in (("a", 4), ("b", 3)) for i in range(n)]
    made = write_evaluation(tmp_path / "x", samples)
    assert sorted(made.benchmarks[0].pass_at) == [1, 2, 3]
    other = EvalResults.from_samples(made.manifest, [s for s in samples for s in (s, replace(s, sample=s.sample + 9))])
    assert sorted(other.benchmarks[0].pass_at) == [1, 2, 4, 6]


def test_an_evaluation_without_samples_has_no_figures(tmp_path):
    assert write_evaluation(tmp_path / "empty", []) is None
    assert EvalResults.from_samples(read_manifest(tmp_path / "empty"), []).benchmarks == ()


def test_several_benchmarks_are_named_by_both(tmp_path):
    made = write_evaluation(tmp_path / "x", [sample("a"), sample("a", accuracy=0.0, benchmark="other")])
    assert made.by_question == {"own/a": 1.0, "other/a": 0.0} and made.accuracy.mean == 0.5
    assert list(by_name({"x": made})) == ["x/own", "x/other"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "schema is"), ('{"schema": "arpo/results/2", "studies": {}}', "a field is missing")],
)
def test_foreign_files_are_refused_with_their_name(tmp_path, content, message):
    evaluation(tmp_path / "x", 0.5, questions=3)
    (tmp_path / "x" / "results.json").write_text(content)
    with pytest.raises(FormatError, match=message) as error:
        read_results(tmp_path / "x")
    assert "results.json" in str(error.value)


def test_other_files_of_the_folder_and_what_was_set_aside_are_left_alone(tmp_path):
    evaluation(tmp_path / "evaluation" / "before", 0.5, questions=3)
    evaluation(tmp_path / "evaluation" / "after", 0.5, questions=3)
    (tmp_path / "evaluation" / "before").rename(tmp_path / "evaluation" / "before.1")
    (tmp_path / "evaluation" / "notes.json").write_text(json.dumps({"schema": "something else"}))
    (tmp_path / "evaluation" / "notes").mkdir()
    assert list(read_evaluations(tmp_path)) == ["after"]
