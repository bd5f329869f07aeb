import json

import pytest
from synthetic_run import evaluation

from arpo.errors import FormatError
from arpo.evaluation.results import Results, Sample, read_all_results, read_results


def test_results_read_back_as_they_were_written(tmp_path):
    made = evaluation("after", 0.6, questions=12, samples=4)
    assert read_results(made.write(tmp_path)) == _plain(made)
    assert sorted(made.pass_at) == [1, 2, 4]
    assert made.num_questions == 12 and made.accuracy.mean == pytest.approx(made.pass_at[1].mean)


def _plain(results: Results) -> Results:
    """JSON turns tuples into lists."""
    from dataclasses import replace

    return replace(results, samples=tuple(replace(s, gold=list(s.gold)) for s in results.samples))


def test_figures_do_not_depend_on_the_order_of_samples():
    made = evaluation("x", 0.5, questions=9, samples=3)
    assert Results.of("x", made.model, made.samples[::-1], settings=made.settings) == made


def test_accuracy_by_question_is_a_mean_over_samples():
    samples = [Sample(id="a", sample=i, accuracy=a, correct=a == 1, reward=a) for i, a in enumerate((0.0, 1.0))]
    assert Results.of("x", "m", samples).accuracy_by_question == {"a": 0.5}


def test_only_asked_for_ks_that_every_question_allows():
    samples = [Sample(id=q, sample=i, accuracy=1.0, correct=True, reward=1.0) for q, n in (("a", 4), ("b", 3)) for i in range(n)]
    assert sorted(Results.of("x", "m", samples).pass_at) == [1, 2, 3]
    assert sorted(Results.of("x", "m", samples, ks=(1, 4)).pass_at) == [1]


def test_an_evaluation_without_samples_has_no_figures(tmp_path):
    empty = Results.of("empty", "m", [])
    assert read_results(empty.write(tmp_path)).num_questions == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "schema is"), ('{"schema": "arpo/evaluation/1", "name": "x"}', "a field is missing")],
)
def test_foreign_files_are_refused_with_their_name(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(FormatError, match=message) as error:
        read_results(tmp_path / "x.json")
    assert "x.json" in str(error.value)


def test_other_json_files_of_the_folder_are_left_alone(tmp_path):
    evaluation("after", 0.5, questions=3).write(tmp_path / "evaluation")
    (tmp_path / "evaluation" / "notes.json").write_text(json.dumps({"schema": "something else"}))
    assert list(read_all_results(tmp_path)) == ["after"]
