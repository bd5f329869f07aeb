"""Figures of a step, against a tree small enough to count by hand."""

from array import array
from dataclasses import replace

import pytest

from arpo.core.branching import Decision, Tip
from arpo.core.credit import CreditedTree, ScoredTree, attribute
from arpo.core.expansion import Decided, TipDecision
from arpo.core.score import Score
from arpo.core.tree import Call, CallStatus, Observation, Prompt, Role, RolloutTree, StopReason, ToolCallResult, Turn
from arpo.training.first_step_checks import check_first_step, tool_use_collapse
from arpo.training.metrics import TreeStats, step_metrics, want_rates


def turn(place, role, entropies, *, calls=0):
    n = len(entropies)
    return Turn(
        place=place,
        role=role,
        tokens=array("i", range(n)),
        logprobs=array("f", [-0.5] * n),
        entropies=array("f", entropies),
        calls=(Call(name="search"),) * calls,
    )


def outcomes(*statuses, cached=False):
    return tuple(ToolCallResult(tool="search", status=status, text="", cached=cached) for status in statuses)


def small_tree() -> RolloutTree:
    """Root 0 calls (2 calls: one runs, one refused), its tip has a probe and two siblings. Root 1 answers; a fill is
    lost."""
    tree = RolloutTree("t", 1, Prompt(tokens=array("i", range(10))))
    tree.grow(turn((0,), Role.ROOT, [0.5, 0.5, 0.5], calls=2))
    tree.grow(
        Observation(place=(0,), tokens=array("i", range(6)), outcomes=outcomes(CallStatus.OK, CallStatus.REFUSED))
    )
    tree.grow(turn((0, 0), Role.PROBE, [1.0, 0.0]))
    tree.grow(turn((0, 1), Role.SIBLING, [9.0], calls=1))
    tree.grow(Observation(place=(0, 1), tokens=array("i", range(4)), outcomes=outcomes(CallStatus.ERROR, cached=True)))
    tree.grow(turn((0, 1, 0), Role.PROBE, [0.25] * 4))
    tree.grow(turn((0, 2), Role.SIBLING, [9.0, 9.0]))
    tree.grow(turn((1,), Role.ROOT, [1.5]))
    for leaf in ((0, 0), (0, 1, 0), (0, 2), (1,)):
        tree.end(leaf, StopReason.FINISHED if leaf != (0, 2) else StopReason.TURN_LENGTH)
    tree.end((2,), StopReason.ENGINE_FAILED)
    return tree


def measured(rewards=(1.0, 0.0, -1.0, 0.5)) -> TreeStats:
    tree = small_tree()
    leaves = [(0, 0), (0, 1, 0), (0, 2), (1,)]
    scores = {
        leaf: Score(reward=r, accuracy=max(r, 0), parts={"format": float(r >= 0), "bonus": 0.0})
        for leaf, r in zip(leaves, rewards, strict=True)
    }
    advantages = {leaf: r - 0.125 for leaf, r in zip(leaves, rewards, strict=True)}
    credited = CreditedTree(ScoredTree(tree, scores), advantages, attribute(advantages, 0.0))
    tip = Tip(place=(0,), head=0.6, head_low=0.6, head_high=0.6, baseline=0.5, baseline_low=0.5, baseline_high=0.5,
              heads=(), wanted_before=0, head_tokens=20, vocab_size=100)  # fmt: skip
    decided = {
        (0,): TipDecision(tip, Decided((0,), Decision(wanted=3, score=0.1, flips=True), 2, waited=True)),
        (5,): TipDecision(None, Decided((5,), Decision(wanted=0, score=0.0), 0)),
    }
    return TreeStats(credited, 2, decided)


def test_rewards_of_leaves_probe_lines_and_forks():
    m = step_metrics([measured()])
    assert m["reward/leaves"] == pytest.approx(0.125)
    assert m["reward/probe_lines"] == pytest.approx((1.0 + 0.5) / 2)  # leaves 0.0 and 1
    assert m["reward/fork_weighted"] == pytest.approx(0.5 * (1.0 + 0.0 - 1.0) / 3 + 0.5 * 0.5)
    assert m["accuracy/leaves"] == pytest.approx(1.5 / 4)
    assert m["parts/format"] == m["rates/format"] == 0.75
    assert m["rates/tool_use"] == 0.75 and m["rates/mixed_groups"] == 1.0


def test_the_format_is_that_of_the_turns_where_the_reward_does_not_judge_it():
    judged = measured()
    scores = {leaf: Score(reward=score.reward, accuracy=0.0) for leaf, score in judged.credited.scored.scores.items()}
    silent = replace(judged, credited=replace(judged.credited, scored=ScoredTree(judged.credited.tree, scores)))
    assert "rates/format" not in step_metrics([silent])
    well_formed = {(0, 0): True, (0, 1, 0): False, (0, 2): False, (1,): False, (2,): True}  # the last has no score
    assert step_metrics([replace(silent, well_formed=well_formed)])["rates/format"] == 0.25
    assert step_metrics([replace(judged, well_formed=well_formed)])["rates/format"] == 0.75


def test_calls_answered_once_count_again_for_each_further_leaf():
    m = step_metrics([measured()])
    assert (m["calls/asked"], m["calls/answered"], m["calls/inherited"]) == (3, 2, 2)
    assert (m["calls/executed"], m["calls/cached"], m["calls/shared"]) == (1, 1, 0)
    assert (m["outcomes/ok"], m["outcomes/refused"], m["outcomes/error"]) == (1, 1, 1)
    flat = 3 * 1 + 1  # each of the three leaves below root 0 rests on its call, one of them on a second
    assert m["calls/answered"] + m["calls/inherited"] == flat


def test_endings_and_lost_leaves():
    m = step_metrics([measured(), measured()])
    assert (m["groups/all"], m["leaves/all"], m["leaves/scored"], m["leaves/lost"], m["leaves/siblings"]) == (
        2,
        10,
        8,
        2,
        4,
    )
    assert (m["endings/finished"], m["endings/turn_length"], m["endings/engine_failed"]) == (6, 2, 2)


def test_tokens_unique_and_flat():
    m = step_metrics([measured()])
    paths = {(0, 0): 3 + 2, (0, 1, 0): 3 + 1 + 4, (0, 2): 3 + 2, (1,): 1}
    unique = 3 + 2 + 1 + 4 + 2 + 1
    assert m["tokens/generated"] == m["tokens/trained_unique"] == unique
    assert m["tokens/trained_flat"] == sum(paths.values()) == unique + m["tokens/shared"]
    assert m["tokens/forward_unique"] == 10 + 6 + 4 + unique
    assert m["tokens/forward_flat"] == 4 * 10 + 3 * 6 + 4 + sum(paths.values())
    assert m["lengths/branch_max"] == 3 + 6 + 1 + 4 + 4 and m["lengths/prompt"] == 10


def test_entropies_leave_siblings_out():
    m = step_metrics([measured()])
    assert m["entropy/first"] == pytest.approx((0.5 + 1.5) / 2)
    assert m["entropy/after_tool"] == pytest.approx(0.5), "the turn after sibling 0.1 does not count"
    assert m["entropy/rise"] == pytest.approx(0.0) and m["entropy/rise_positive"] == 0.0
    assert m["entropy_at/after_tool/00"] == pytest.approx(1.0) and "entropy_at/after_tool/02" not in m
    assert step_metrics([measured()], head_tokens=1)["entropy/rise"] == pytest.approx(0.5)


def test_decisions_and_the_rates_that_a_random_rule_needs():
    m = step_metrics([measured()])
    assert [m[f"decisions/{n}"] for n in ("tips", "wanted", "granted", "refused", "flips", "waited")] == [
        1,
        3,
        2,
        1,
        1.0,
        1.0,
    ]
    history = [
        m,
        {"decisions/tips_at/1": 3, "decisions/wanting_at/1": 0, "decisions/tips_at/2": 2},
        {"decisions/tips_at/3": None},
    ]
    assert want_rates(history) == {1: 0.25, 2: 0.0}


def test_a_group_without_scores_has_no_rewards():
    tree = RolloutTree("t", 1, Prompt(tokens=array("i", [1])))
    tree.end((0,), StopReason.ENGINE_FAILED)
    m = step_metrics([TreeStats(CreditedTree(ScoredTree(tree, {}), {}, {}), 1)])
    assert m["leaves/lost"] == 1 and m["tokens/generated"] == 0
    assert not any(name.startswith(("reward/", "rates/", "decisions/", "entropy/")) for name in m)
    with pytest.raises(ValueError, match="nothing to measure"):
        step_metrics([])


def test_gates_name_what_fails():
    found = {g.what: g for g in check_first_step(step_metrics([measured()]), {"tool_use": 0.75})}
    assert [g.holds for g in found.values()] == [False, True, True, False]
    assert "FAILS: leaves in the right format (0.75 < 0.90)" in map(str, found.values())
    assert not any(g.holds for g in check_first_step({})) and "not measured" in str(check_first_step({})[0])


def test_tool_use_that_falls_away_warns_and_noise_does_not():
    steady = [{"rates/tool_use": rate} for rate in (0.95, 0.9, 0.97, 0.92, 0.88, 0.93)]
    assert tool_use_collapse(steady) is None and tool_use_collapse(steady[:4]) is None
    fallen = steady + [{"rates/tool_use": rate} for rate in (0.6, 0.3, 0.1)]
    assert "tool use collapsed" in tool_use_collapse(fallen)
    assert tool_use_collapse([{"rates/tool_use": 0.0}] * 9) is None  # a run without tools has nothing to lose
