"""Studies of recorded answers: what the figures must be for trajectories written by hand, and for a run that really
happened."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_turns import recorded
from typer.testing import CliRunner

from arpo.cli.commands import app
from arpo.core.tree import CallStatus, on_probe_line
from arpo.errors import ConfigError
from arpo.evaluation.entropy import draw_entropy, entropy_study
from arpo.evaluation.quality import quality
from arpo.evaluation.statistics import FEW
from arpo.evaluation.trajectories import ratio, read_recorded, share

OK, ERROR, REFUSED = CallStatus.OK, CallStatus.ERROR, CallStatus.REFUSED


def call(query: str, text: str = "nothing", status: CallStatus = OK, name: str = "search"):
    return (name, {"query": query}, status, text)


# --- entropy


def test_heads_before_and_after_results_and_the_rise_between() -> None:
    turns = [[1.0, 3.0, 0.5, 0.5], [3.0, 3.0, 9.0], [2.0, 4.0]]  # heads of 2: 2, 3, 3; tails: 0.5, 6
    study = entropy_study([recorded("a", turns, [[call("x")], [call("y", name="python")]])])
    assert [(t.tool, t.results) for t in study.tools] == [("all tools", 2), ("python", 1), ("search", 1)]
    whole, python, search = study.tools
    assert (whole.first.mean, whole.before.mean, whole.after.mean) == pytest.approx((2.0, 3.25, 3.0))
    assert whole.rise.mean == pytest.approx(0.5) and whole.rise_from_before.mean == pytest.approx(3 / 3.25 - 1)
    assert search.rise_from_before.mean == pytest.approx(5.0) and python.rise_from_before.mean == pytest.approx(-0.5)
    assert search.positions == (-4, -3, -2, -1, 0, 1, 2) and search.curve[0].mean == pytest.approx(1.0)
    assert [number for number, _ in study.by_number] == [1, 2] and whole.rose.mean == 1.0


def test_the_claim_is_held_against_the_interval() -> None:
    inside = [recorded(f"q{n}", [[1.0, 1.0], [1.5, 1.5]], [[call("x")]]) for n in range(30)]
    assert "the claim holds here" in entropy_study(inside).claim
    flat = [recorded(f"q{n}", [[1.0, 1.0 + n / 30], [1.0, 1.0]], [[call("x")]]) for n in range(30)]
    assert "does not hold" in entropy_study(flat).claim
    mixed = [recorded(f"q{n}", [[1.0, 1.0], [1.0 + n % 2, 1.0 + n % 2]], [[call("x")]]) for n in range(30)]
    assert "beyond it" in entropy_study(mixed).claim
    assert "too few" in entropy_study(inside[:1]).claim


def test_narrow_intervals_count_and_an_engine_that_knows_nothing_is_named() -> None:
    turns, calls = [[1.0, 1.0], [2.0, 2.0]], [[call("x")]]
    assert entropy_study([recorded("a", turns, calls, width=0.2)]).all.results == 1
    with pytest.raises(ConfigError, match="tells no entropies"):
        entropy_study([recorded("a", turns, calls, width=5.0)])
    with pytest.raises(ConfigError, match="no tool result was followed"):
        entropy_study([recorded("a", [[1.0, 1.0]])])


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 10)), min_size=1, max_size=30))
def test_a_ratio_lies_in_its_interval_and_does_not_depend_on_order(pairs: list[tuple[float, float]]) -> None:
    named = {str(number): pair for number, pair in enumerate(pairs)}
    found = ratio(named, purpose="x")
    assert found.mean == pytest.approx(sum(up for up, _ in pairs) / sum(down for _, down in pairs))
    assert str(found) == str(ratio(dict(reversed(named.items())), purpose="x"))
    if len(pairs) < FEW:
        assert math.isnan(found.low) and math.isnan(found.high), "a few questions have no interval"
        return
    assert found.low <= found.mean * 1.0001 + 1e-9 and found.high >= found.mean * 0.9999 - 1e-9


def test_all_or_nothing_of_a_few_questions_is_no_certainty() -> None:
    pairs = {str(number): (2.0, 2.0) for number in range(5)}
    found = share(pairs, purpose="x")
    assert found.mean == found.high == 1 and 0.4 < found.low < 0.7


# --- tool-call quality


def test_every_figure_of_one_trajectory() -> None:
    calls = [
        [call("Peru", "Peru\nin the Andes")],
        [call(" peru ", "Peru\nin the Andes")],  # made before: case and blanks do not count
        [call("Andes", "in the Andes")],  # another call, not a new line
        [call("x", "unknown", REFUSED, name="serch")],
        [call("1/0", "ZeroDivisionError", ERROR, name="python")],
        [call("capital", "Lima is the capital")],
        [call("more", "Lima has a port")],
    ]
    expected = [{"name": "search", "arguments": {"query": "Peru"}}, {"name": "search", "arguments": {"query": "mayor"}}]
    found = quality([recorded("a", [[1.0]] * 8, calls, right=False, expected=expected)])
    told = {name: estimate.mean for name, estimate in found.figures.items()}
    assert (found.trajectories, found.calls) == (1, 7)
    assert told == pytest.approx(
        {
            "valid": 6 / 7,
            "succeeded": 5 / 6,
            "right_tool": 5 / 7,
            "right_arguments": 2 / 7,
            "expected": 1 / 2,
            "repeated": 1 / 7,
            "redundant": 1 / 4,
            "after_known": 1 / 7,
            "missed": 1.0,
            "recovered": 1.0,
            "beyond_limit": 0.0,
        }
    )
    assert set(found.by_tool) == {"python", "search", "serch"} and found.by_tool["serch"]["valid"].mean == 0


def test_golds_that_stand_anywhere_by_chance_say_nothing() -> None:
    found = quality(
        [recorded(gold, [[1.0]] * 3, [[call("x", "7 yes")], [call("y")]], golds=[gold]) for gold in ("yes", "7")]
    )
    assert "after_known" not in found.figures and "missed" not in found.figures


def test_calls_that_were_never_run_are_apart() -> None:
    from arpo.rollout.driver import NOT_RUN

    found = quality([recorded("a", [[1.0]] * 2, [[call("x"), call("y", NOT_RUN, REFUSED)]])])
    assert found.figures["beyond_limit"].mean == 0.5 and found.figures["valid"].mean == 1.0


def test_trajectories_without_calls_have_no_figures_but_count() -> None:
    found = quality([recorded("a", [[1.0]])])
    assert found.trajectories == 1 and found.calls == 0 and not found.figures


# --- from the command line


@pytest.mark.real_plots
def test_a_run_is_studied_from_its_records(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["study", str(tiny_run), "--entropy", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "Tool-call quality" in done.output and "claimed: +40 %" in done.output.replace("\n", " ")
    value = json.loads((out / "study.json").read_text())
    trees = [each.record.tree for each in read_recorded(tiny_run)]
    after = [(tree, (*place, 0)) for tree in trees for place in tree.observations]
    results = sum(on_probe_line(tree, place) and place in tree.turns for tree, place in after)
    assert value["studies"]["entropy"]["tools"][0]["results"] == results > 0
    assert (out / "plots" / "entropy.png").read_bytes()[:4] == b"\x89PNG"
    pair = CliRunner().invoke(app, ["study", str(tiny_run), str(tiny_run / "events" / "step-000001.frames")])
    assert pair.exit_code == 0 and "tiny" in pair.output and "step-000001" in pair.output


def test_what_cannot_be_studied_is_named(tmp_path: Path, tiny_run: Path) -> None:
    nothing = CliRunner().invoke(app, ["study", str(tmp_path)])
    assert nothing.exit_code and "holds no recorded trajectories" in nothing.output
    judged = CliRunner().invoke(app, ["study", str(tiny_run), "--judge", "{url: http://x/v1, model: m}"])
    assert judged.exit_code and "a judge looks at evaluations" in judged.output
    wrong = CliRunner().invoke(app, ["study", str(tiny_run), "--judge", "{url: x}"])
    assert wrong.exit_code and "--judge.url" in wrong.output


def test_a_single_question_is_no_picture(tmp_path: Path) -> None:
    turns, calls = [[1.0, 1.0], [2.0, 2.0]], [[call("x")]]
    assert draw_entropy(tmp_path / "e.png", entropy_study([recorded("a", turns, calls)])) is None
    two = entropy_study([recorded("a", turns, calls), recorded("b", turns, calls)])
    assert draw_entropy(tmp_path / "e.png", two, name="tiny") is not None
