"""Figures of answers: each against its definition, and results in other forms."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.evaluation.lm_eval_export import export_lm_eval
from arpo.evaluation.manifest import BenchmarkManifest, EvalManifest
from arpo.evaluation.reports import tables
from arpo.evaluation.results import EvalResults, write_results
from arpo.evaluation.samples import SampleRecord
from arpo.evaluation.statistics import Estimate, mean_of_estimates, pass_at, rate, ratio

RATES = st.floats(0, 1)


def made(answers, samples=1, **changes):
    names = dict.fromkeys(a.benchmark for a in answers)
    benchmarks = tuple(
        BenchmarkManifest(
            name=name, title=name.upper(), metric="f1", judged=name == "judged",
            ids=tuple(dict.fromkeys(a.id for a in answers if a.benchmark == name)), num_all=99, digest="d",
        )
        for name in names
    )  # fmt: skip
    settings = {"temperature": 0.6, "top_p": 0.95, "seed": 1, "max_calls": 3, "branch_tokens": 100}
    about = {"name": "own", "model": "org/m", "recipe": "r", "preset": ""}
    asked = EvalManifest(**about, benchmarks=benchmarks, samples=samples, settings=settings, decides={}, **changes)
    return EvalResults.from_samples(asked, answers)


def answer(id, accuracy=1.0, *, benchmark="own", sample=0, calls=0, **more):
    right = accuracy >= 0.5
    values = {
        "correct": right,
        "reward": accuracy,
        "answer": "x",
        "gold": ("x",),
        "question": f"{id}?",
        "ending": "finished",
        **more,
    }
    return SampleRecord(benchmark=benchmark, id=id, sample=sample, accuracy=accuracy, calls=calls, **values)


@given(st.lists(st.tuples(RATES, st.integers(0, 6)), min_size=1, max_size=12))
def test_curve_and_productivity_are_what_they_say(given):
    found = made([answer(f"q{n}", accuracy, calls=calls) for n, (accuracy, calls) in enumerate(given)]).benchmark["own"]
    most = max(calls for _, calls in given)
    assert list(found.by_budget) == list(range(most + 1))
    for budget, estimate in found.by_budget.items():
        assert estimate.mean == pytest.approx(sum(a for a, calls in given if calls <= budget) / len(given))
    assert found.by_budget[most].mean == pytest.approx(found.accuracy.mean)
    total = sum(calls for _, calls in given)
    assert (
        math.isnan(found.productivity.mean)
        if not total
        else found.productivity.mean == pytest.approx(sum(a for a, _ in given) / total)
    )


def test_pass_at_k_of_answers_is_that_of_all_subsets():
    draws = random.Random(3)
    right = {f"q{n}": [draws.random() < 0.4 for _ in range(5)] for n in range(9)}
    answers = [answer(id, float(ok), sample=i) for id, all_ in right.items() for i, ok in enumerate(all_)]
    found = made(answers, samples=5).benchmark["own"]
    for k, estimate in found.pass_at.items():
        subsets = [np.mean([any(each) for each in itertools.combinations(all_, k)]) for all_ in right.values()]
        assert estimate.mean == pytest.approx(np.mean(subsets)) and estimate.low <= estimate.mean <= estimate.high
    assert set(found.pass_at) == {1, 2, 4, 5}


@given(st.lists(st.tuples(RATES, st.integers(0, 5)), min_size=2, max_size=30))
def test_a_ratio_lies_in_its_interval(pairs):
    above, below = [a for a, _ in pairs], [b for _, b in pairs]
    found = ratio(above, below, resamples=200)
    if sum(below) == 0:
        assert math.isnan(found.mean)
    else:
        assert found.mean == pytest.approx(sum(above) / sum(below)) and not found.low > found.high


def test_nothing_right_has_an_interval_all_the_same():
    assert rate({f"q{n}": [0.0, 0.0] for n in range(20)}).high > 0.1
    assert pass_at({f"q{n}": [True, True] for n in range(20)}, 2).low < 0.9
    both = mean_of_estimates([Estimate(0.0, 0.0, 0.2, 10), Estimate(1.0, 0.7, 1.0, 10)])
    assert (both.mean, both.low, both.high) == pytest.approx((0.5, 0.35, 0.6))
    alone = mean_of_estimates([Estimate(0.4, 0.3, 0.5, 7)])
    assert (alone.low, alone.high, alone.n) == (pytest.approx(0.3), pytest.approx(0.5), 1)


def test_the_mean_of_means_covers_the_truth():
    """95 % intervals of the mean of three benchmarks of unlike size hold the truth in about 95 % of draws."""
    draws, truth, held = np.random.default_rng(0), (0.05, 0.5, 0.9), 0
    for _ in range(400):
        found = [
            rate({str(i): [float(x)] for i, x in enumerate(draws.random(n) < p)})
            for p, n in zip(truth, (30, 60, 120), strict=True)
        ]
        estimate = mean_of_estimates(found)
        held += estimate.low <= sum(truth) / 3 <= estimate.high
    assert 0.92 <= held / 400 <= 0.99


def test_groups_measures_and_failures():
    answers = [
        answer("q1", level="1", category="law", measures={"exact": 1.0}),
        answer("q2", 0.0, level="2", category="art", measures={"exact": 0.0}),
        answer("q3", 0.0, level="2", category="art", ending="engine_failed", failure="gone\nwith a trace", answer=None),
    ]
    found = made(answers)
    each = found.benchmark["own"]
    assert {k: (e.mean, e.n) for k, e in each.by_level.items()} == {"1": (1.0, 1), "2": (0.0, 2)}
    assert each.by_category["art"].n == 2 and each.measures["exact"].mean == pytest.approx(1 / 3)
    assert each.failures == {"gone": 1} and each.endings == {"finished": 2, "engine_failed": 1}
    assert any("1 of 3 answers failed and count as wrong: gone (1)" in text for text in found.warnings)
    shown = "\n".join(table.markdown() for table in tables(found))
    assert "by level" in shown and "by category" in shown and "gone" in shown


def test_a_study_brings_its_own_tables_and_stays(tmp_path):
    found = made([answer("q1"), answer("q2", 0.0)])
    study = {
        "tables": [{"title": "Judged", "head": ["who", "right"], "rows": [["judge", 0.5]]}],
        "warnings": ["disagrees"],
    }
    shown = tables(
        type(found)(manifest=found.manifest, benchmarks=found.benchmarks, mean=found.mean, studies={"judge": study})
    )
    assert shown[-1].title == "Judged" and shown[-1].rows == [["judge", "0.5"]]
    assert json.loads(write_results(tmp_path, found).read_text())["studies"] == {}


def test_the_form_of_lm_evaluation_harness(tmp_path):
    answers = [answer(f"q{n}", float(n < 4), sample=s) for n in range(10) for s in range(2)]
    path = export_lm_eval(made(answers, samples=2), answers, tmp_path, at=0.0)
    value = json.loads(path.read_text())
    assert path.parent.name == "org__m" and path.name == "results_1970-01-01T00-00-00.000000.json"
    result = value["results"]["own"]
    assert result["acc,none"] == 0.4 and 0.1 < result["acc_stderr,none"] < 0.2 and result["pass@2,none"] == 0.4
    assert value["n-samples"]["own"] == {"original": 99, "effective": 10} and value["higher_is_better"]["own"]["acc"]
    assert {"configs", "versions", "n-shot", "config", "model_name"} <= value.keys()
    lines = [
        json.loads(line)
        for line in (path.parent / "samples_own_1970-01-01T00-00-00.000000.jsonl").read_text().splitlines()
    ]
    assert [line["doc_id"] for line in lines] == list(range(10)) and sum(line["acc"] for line in lines) == 4
    assert len(lines[0]["resps"][0]) == len(lines[0]["filtered_resps"]) == 2
