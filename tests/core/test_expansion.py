"""Budget, order and timing of an expansion (docs/method.md, section 4)."""

from random import Random

import pytest
from canonical_oracle import Canonical
from expansion_world import Drive, Whim, World, expansion, grow
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core import (
    Aepo,
    Chance,
    Constant,
    Decided,
    Decision,
    Failed,
    Fixed,
    HeadKnown,
    Never,
    Paper,
    Pilot,
    Rank,
    Released,
    Role,
    RunCalls,
    SampleTurn,
    StepStats,
    StopReason,
    Threshold,
    TurnEnded,
)
from arpo.core.branching import DEEPEST
from arpo.errors import ConfigError

RULES = [
    Never(),
    Fixed(),
    Fixed(at=2, siblings=2),
    Chance(rates=(0.9, 0.4)),
    Paper(),
    Paper(siblings=3),
    Released(draws=2),
    Threshold(theta=0.4),
    Threshold(theta=0.4, window=5),
    Aepo(siblings=2),
    Rank(),
]


@st.composite
def situations(draw):
    leaves = draw(st.integers(1, 12))
    return {
        "world": World(
            seed=draw(st.integers(0, 10**6)),
            go_on=draw(st.sampled_from([0.3, 0.7, 0.95])),
            deepest=draw(st.integers(0, 4)),
            fails=draw(st.sampled_from([0.0, 0.0, 0.3])),
            cut=draw(st.sampled_from([0.0, 0.1])),
            interval=draw(st.booleans()),
        ),
        "rule": draw(st.one_of(st.sampled_from(RULES), st.builds(Whim, st.integers(0, 10**6)))),
        "leaves": leaves,
        "roots": draw(st.one_of(st.integers(1, leaves), st.just(Pilot()))),
        "root_cap": draw(st.sampled_from([None, None, 1, 2, 3])),
        "retries": draw(st.integers(0, 2)),
        "leftover": draw(st.sampled_from(["prompt", "tips"])),
        "stats": StepStats(
            step=draw(st.sampled_from([0, 7, "test"])), window=draw(st.sampled_from([(), (0.5, 1.5, 1.0)]))
        ),
        "seed": draw(st.integers(0, 100)),
    }


def outcome(grown):
    """What must not depend on timing."""
    granted = {place: made.decided.granted for place, made in grown.decisions.items()}
    judged = {place: (made.tip, made.decided.decision) for place, made in grown.decisions.items()}
    return grown.tree, granted, judged, sorted(grown.fills), grown.planned_roots


@settings(max_examples=240, deadline=None)
@given(situations(), st.integers(0, 10**9))
def test_outcome_equals_canonical_order_whatever_the_timing(situation, timing):
    grown = grow(timing=timing, **situation)
    world = situation.pop("world")
    oracle = Canonical(world, task="task", **situation)
    assert {place: made.decided.granted for place, made in grown.decisions.items()} == oracle.granted
    assert {place: made.tip for place, made in grown.decisions.items() if made.tip} == oracle.tips
    assert grown.tree.endings == oracle.leaves
    assert (grown.fills, grown.planned_roots) == (oracle.fills, oracle.roots)
    assert grown.done


@pytest.mark.parametrize("trees", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_outcome_equals_canonical_order_over_many_trees(trees):
    """The same as above, over many more wants and timings: no mismatch and no deadlock."""
    for number in range(trees):
        draw = Random(number)
        leaves = draw.randint(2, 16)
        mosts = tuple(draw.choice([0, 1, 1, 2, 3, 4]) for _ in range(4))
        values = {
            "rule": Whim(number, mosts),
            "leaves": leaves,
            "roots": draw.randint(1, leaves),
            "root_cap": draw.choice([None, None, 2, 3, 4, 6]),
            "retries": 0,
            "leftover": draw.choice(["prompt", "tips"]),
            "stats": StepStats(step=0),
            "seed": 0,
        }
        world = World(seed=number, go_on=draw.choice([0.5, 0.9]), deepest=draw.randint(1, 4))
        grown = grow(world, draw, deepest=draw.choice([256, world.deepest]), **values)
        oracle = Canonical(world, task="task", **values)
        assert {place: made.decided.granted for place, made in grown.decisions.items()} == oracle.granted, number
        assert grown.tree.endings == oracle.leaves, number
        assert grown.done


@settings(max_examples=60, deadline=None)
@given(situations(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_same_seed_gives_the_same_tree_when_only_event_order_changes(situation, one, other):
    assert outcome(grow(timing=one, **situation)) == outcome(grow(timing=other, **situation))


@settings(max_examples=80, deadline=None)
@given(situations(), st.integers(0, 10**9))
def test_budget_laws_hold_at_every_moment(situation, timing):
    world = situation.pop("world")
    drive = Drive(expansion(**situation), world, Random(timing))
    growing, leaves = drive.expansion, situation["leaves"]
    drive._obey(growing.start())
    while drive.pending:
        drive.step()
        started = [
            c.place for c in drive.commands if isinstance(c, SampleTurn) and c.attempt == 0 and c.role is not Role.PROBE
        ]
        assert len(started) == len(set(started)) <= leaves
        if growing.planned_roots is not None:
            cap = growing.config.cap(growing.planned_roots)
            for root in range(growing.planned_roots):
                assert sum(place[0] == root for place in started) <= max(1, cap)
    assert growing.done and len(growing.tree.endings) == leaves
    decided = [c.place for c in drive.commands if isinstance(c, Decided)]
    assert sorted(decided) == sorted(growing.tree.observations)  # exactly one for every tip, fills' included
    for c in drive.commands:
        if isinstance(c, Decided):
            assert c.granted >= 0 and (c.granted <= c.decision.wanted or situation["leftover"] == "tips")
            siblings = [p for p in growing.tree.turns | growing.tree.endings if p[:-1] == c.place and p[-1] > 0]
            assert len(siblings) == c.granted
    assert all(
        not any(place[1:]) for place in growing.tree.endings if place[0] >= growing.planned_roots
    )  # fills never branch


def test_pilot_alone_starts_and_counts_as_root_0():
    drive = Drive(expansion(rule=Paper(), roots=Pilot(), leaves=8), World(seed=1, go_on=1.0, deepest=2), Random(0))
    assert drive.expansion.start() == [SampleTurn((0,), Role.ROOT)]
    grown = grow(World(seed=1, go_on=1.0, deepest=2), rule=Paper(), roots=Pilot(), leaves=8)
    pilot = [made for place, made in grown.decisions.items() if place[0] == 0]
    assert all(made.decided.waited for made in pilot if made.decided.decision.wanted)
    assert 1 <= grown.planned_roots <= 8 and (0, 0, 0) in grown.tree.endings


def test_pilot_without_a_tool_call_plans_only_roots():
    grown = grow(World(seed=1, go_on=0.0), rule=Paper(), roots=Pilot(), leaves=6)
    assert grown.planned_roots == 6 and not grown.fills and len(grown.tree.endings) == 6


def test_constant_plan_is_a_number_of_roots():
    world = World(seed=5)
    assert outcome(grow(world, rule=Paper(), roots=Constant(roots=4))) == outcome(grow(world, rule=Paper(), roots=4))


def test_rank_serves_the_highest_scores_of_the_whole_tree_with_prompts_for_none():
    """Few fills, and no tip without a sibling scores higher than one with, where neither root is full."""
    for number in range(60):
        world = World(seed=number, go_on=0.8)
        grown = grow(world, Random(number), rule=Rank(by="head"), leaves=8, roots=4, root_cap=8, leftover="tips",
                     stats=StepStats(step=0), seed=0, retries=0)  # fmt: skip
        first = {p: d.decided for p, d in grown.decisions.items() if all(child == 0 for child in p[1:])}
        assert sum(d.granted for d in first.values()) == (4 if first else 0)
        assert len(grown.fills) == (0 if first else 4)
        least = min((d.decision.score for d in first.values() if d.granted), default=0.0)
        assert all(d.decision.score <= least for d in first.values() if not d.granted)


def test_default_root_cap():
    def cap(leaves, roots):
        return expansion(rule=Paper(), leaves=leaves, roots=roots).config.cap(roots)

    assert (cap(16, 8), cap(12, 6), cap(16, 4), cap(8, 8), cap(5, 1), cap(1, 1)) == (3, 3, 6, 2, 5, 1)


def test_nothing_waits_at_depth_1_with_one_sibling_and_enough_budget():
    for seed in range(50):
        grown = grow(World(seed=seed), timing=seed, rule=Paper(), leaves=8, roots=4)
        assert not any(made.decided.waited for place, made in grown.decisions.items() if len(place) == 1)


def test_same_seed_other_task_or_step_draws_otherwise():
    def granted(**values):
        grown = grow(World(seed=3, go_on=1.0), rule=Chance(), leaves=16, roots=8, **values)
        return {place: made.decided.decision for place, made in grown.decisions.items()}

    assert granted() == granted()
    assert granted() != granted(task="other")
    assert granted() != granted(seed=1)
    assert granted() != granted(stats=StepStats(step=4))


def failing_probe(growing):
    """Bring root 0's probe to life and return the place of its tip."""
    world = World(seed=0, go_on=1.0)
    growing.feed(TurnEnded(world.turn((0,), Role.ROOT)))
    growing.feed(world.returned((0,)))
    return world


def test_failed_request_is_asked_again_with_the_next_attempt_then_the_leaf_is_aborted():
    growing = expansion(rule=Paper(), leaves=1, roots=1, retries=2)
    growing.start()
    failed = Failed((0,), StopReason.ENGINE_FAILED)
    assert growing.feed(failed) == [SampleTurn((0,), Role.ROOT, 1)]
    assert growing.feed(failed) == [SampleTurn((0,), Role.ROOT, 2)]
    assert growing.feed(failed) == []
    assert growing.tree.endings == {(0,): StopReason.ENGINE_FAILED} and growing.done
    assert not growing.tree.turns


def test_failed_tools_run_again_with_the_next_attempt():
    world, growing = World(seed=0, go_on=1.0), expansion(rule=Paper(), leaves=1, roots=1)
    growing.start()
    turn = world.turn((0,), Role.ROOT)
    assert growing.feed(TurnEnded(turn)) == [RunCalls((0,), turn.calls)]
    assert growing.feed(Failed((0,), StopReason.TOOL_FAILED)) == [RunCalls((0,), turn.calls, 1)]
    growing.feed(Failed((0,), StopReason.TOOL_FAILED))
    assert growing.tree.endings == {(0,): StopReason.TOOL_FAILED} and growing.done


def test_probe_that_fails_before_its_head_wants_nothing():
    growing = expansion(rule=Fixed(), leaves=2, roots=1, retries=0)
    growing.start()
    failing_probe(growing)
    commands = growing.feed(Failed((0, 0), StopReason.ENGINE_FAILED))
    assert Decided((0,), Decision(wanted=0, score=0.0), 0) in commands
    assert growing.decisions[0,].tip is None
    assert SampleTurn((1,), Role.FILL) in commands  # the leaf that nobody can use any more starts from the prompt


def test_probe_that_fails_after_its_head_keeps_its_decision():
    growing = expansion(rule=Fixed(), leaves=2, roots=1, retries=0)
    growing.start()
    world = failing_probe(growing)
    commands = growing.feed(HeadKnown((0, 0), world.turn((0, 0), Role.PROBE).entropies))
    assert SampleTurn((0, 1), Role.SIBLING) in commands
    growing.feed(Failed((0, 0), StopReason.ENGINE_FAILED))
    assert growing.tree.endings == {(0, 0): StopReason.ENGINE_FAILED} and growing.decisions[0,].decided.granted == 1


def test_first_head_decides_even_if_the_probe_is_sampled_again():
    growing = expansion(rule=Paper(), leaves=2, roots=1, retries=1)
    growing.start()
    world = failing_probe(growing)
    growing.feed(HeadKnown((0, 0), world.turn((0, 0), Role.PROBE).entropies))
    made = growing.decisions[0,]
    growing.feed(Failed((0, 0), StopReason.ENGINE_FAILED))
    growing.feed(HeadKnown((0, 0), world.turn((0, 0), Role.PROBE, attempt=1).entropies))
    assert growing.decisions[0,] == made


def test_observation_that_does_not_fit_makes_its_turn_the_leaf():
    world, growing = World(seed=0, go_on=1.0, cut=1.0), expansion(rule=Fixed(), leaves=1, roots=1)
    growing.start()
    growing.feed(TurnEnded(world.turn((0,), Role.ROOT)))
    assert growing.feed(world.returned((0,))) == []
    assert growing.tree.endings == {(0,): StopReason.BRANCH_LENGTH} and not growing.tree.observations and growing.done


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"leaves": 0}, "leaves"),
        ({"leaves": 4, "roots": 5}, "roots"),
        ({"roots": 0}, "roots"),
        ({"root_cap": 0}, "root_cap"),
        ({"retries": -1}, "retries"),
        ({"deepest": -1}, "deepest"),
        ({"head": 0}, "head"),
    ],
)
def test_numbers_that_cannot_go_together(values, key):
    with pytest.raises(ConfigError) as caught:
        expansion(rule=Paper(), **values)
    assert caught.value.where == key


def test_events_that_answer_no_command_are_refused():
    world, growing = World(seed=0, go_on=1.0), expansion(rule=Paper(), leaves=1, roots=1)
    growing.start()
    turn = world.turn((0,), Role.ROOT)
    for event in (
        TurnEnded(world.turn((1,), Role.ROOT)),
        TurnEnded(world.turn((0,), Role.FILL)),
        world.returned((0,)),
        HeadKnown((4,), turn.entropies),
        Failed((0,), StopReason.FINISHED),
        Failed((9,), StopReason.ENGINE_FAILED),
    ):
        with pytest.raises(ValueError, match="turn"):
            growing.feed(event)
    with pytest.raises(ValueError, match="starts once"):
        growing.start()
    assert growing.events == []
    growing.feed(TurnEnded(turn))
    assert growing.events == [TurnEnded(turn)]


def test_rule_that_wants_more_than_its_most_is_refused():
    class Greedy:
        def __call__(self, tip, stats, random):
            return Decision(wanted=2, score=0.0)

        def most(self, depth):
            return 1

    with pytest.raises(ValueError, match="it may want 0 to most"):
        grow(World(seed=1, go_on=1.0), rule=Greedy())


class Everywhere:
    """Wants a branch at every tip, and has no answer for a depth that it is never asked about."""

    def __call__(self, tip, stats, random):
        return Decision(wanted=self.most(tip.depth), score=0.0)

    def most(self, depth):
        assert 1 <= depth <= DEEPEST
        return int(depth == DEEPEST)


@pytest.mark.parametrize("root_1_ends", ["first", "last"])
def test_no_tip_below_the_deepest_branches_whatever_the_timing(root_1_ends):
    """Root 0 makes more calls than any rule is asked about. Then its tips want nothing: what they would get depended on
    timing."""
    growing = expansion(rule=Everywhere(), leaves=4, roots=2, root_cap=3, deepest=2 * DEEPEST)
    growing.start()
    world, place = World(seed=0, go_on=1.0, deepest=2 * DEEPEST), (0,)
    end = TurnEnded(World(seed=0, go_on=0.0).turn((1,), Role.ROOT), StopReason.FINISHED)
    if root_1_ends == "first":
        growing.feed(end)
    growing.feed(TurnEnded(world.turn(place, Role.ROOT)))
    for _ in range(DEEPEST + 3):
        growing.feed(world.returned(place))
        place = (*place, 0)
        growing.feed(TurnEnded(world.turn(place, Role.PROBE)))
    if root_1_ends == "last":
        growing.feed(end)
    assert {len(tip): made.decided.granted for tip, made in growing.decisions.items() if made.decided.granted} == {
        DEEPEST: 1
    }
    assert len(growing.decisions) == DEEPEST + 3
    assert growing.fills == [(2,)]
