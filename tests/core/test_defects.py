"""Defects of the released code that belong to the core: each test fails under the released behaviour."""

import random
from array import array
from random import Random

import pytest
from expansion_world import VOCAB, World, expansion, floats, grow

from arpo.core import (
    Call,
    CallStatus,
    Chance,
    Decided,
    Fixed,
    HeadKnown,
    Never,
    Observation,
    Paper,
    Place,
    Prompt,
    Returned,
    Role,
    RolloutTree,
    RunCalls,
    SampleTurn,
    StepStats,
    StopReason,
    ToolCallResult,
    Turn,
    TurnEnded,
    head_entropy,
)
from arpo.core.expansion import Expansion


def turn(place: Place, role: Role, entropies, *, calls: bool = True) -> Turn:
    return Turn(
        place=place,
        role=role,
        tokens=array("i", range(len(entropies))),
        logprobs=floats([-1.0] * len(entropies)),
        entropies=floats(entropies),
        calls=(Call(name="search"),) if calls else (),
    )


def returned(place: Place, text: str = "found") -> Returned:
    outcomes = (ToolCallResult(tool="search", status=CallStatus.OK, text=text),)
    return Returned(Observation(place=place, tokens=array("i", [7]), outcomes=outcomes))


def root_to_tip(growing: Expansion, root: int, entropies) -> None:
    growing.feed(TurnEnded(turn((root,), Role.ROOT, entropies)))
    growing.feed(returned((root,)))


def test_defect_1_baseline_belongs_to_the_path_and_not_to_a_batch_position():
    """Two batches, the same positions, other prompts: the second batch's rises are against its own first turns."""
    for entropies in ([2.0] * 4, [0.5] * 4):
        growing = expansion(rule=Paper(), leaves=4, roots=2)
        growing.start()
        for root in (0, 1):
            root_to_tip(growing, root, entropies)
            growing.feed(HeadKnown((root, 0), floats([1.0] * 4)))
        for root in (0, 1):
            made = growing.decisions[root,]
            assert made.tip.baseline == entropies[0]
            assert made.tip.rise == 1.0 - entropies[0]
            assert made.decided.decision.wanted == (entropies[0] < 1.0)


def test_defect_1_baseline_is_of_the_own_root():
    growing = expansion(rule=Paper(), leaves=4, roots=2)
    growing.start()
    for root, baseline in ((1, 2.0), (0, 0.5)):
        root_to_tip(growing, root, [baseline] * 4)
        growing.feed(HeadKnown((root, 0), floats([1.0] * 4)))
    assert [growing.decisions[root,].tip.rise for root in (0, 1)] == [0.5, -1.0]


def test_defect_2_entropy_is_measured_after_the_tool_result():
    """The turn before the call is sure throughout; what follows the result is not. Nothing is decided until that is
    seen."""
    growing = expansion(rule=Paper(), leaves=2, roots=1)
    growing.start()
    growing.feed(TurnEnded(turn((0,), Role.ROOT, [0.1] * 8)))
    commands = growing.feed(returned((0,)))
    assert commands == [SampleTurn((0, 0), Role.PROBE)] and not growing.decisions
    commands = growing.feed(HeadKnown((0, 0), floats([1.9] * 4)))
    assert growing.decisions[0,].tip.head == pytest.approx(1.9)
    assert commands[1:] == [SampleTurn((0, 1), Role.SIBLING)]


def test_defect_3_heads_are_means_so_short_turns_do_not_look_sure():
    """The probe has two tokens and is less sure than the first turn with its four: a sum would say the opposite."""
    growing = expansion(rule=Paper(), leaves=2, roots=1)
    growing.start()
    root_to_tip(growing, 0, [1.0] * 4)
    growing.feed(TurnEnded(turn((0, 0), Role.PROBE, [1.2, 1.2], calls=False), StopReason.FINISHED))
    assert growing.decisions[0,].tip.rise == pytest.approx(0.2)
    assert growing.decisions[0,].decided.granted == 1
    assert head_entropy([1.2, 1.2], 4) > head_entropy([1.0] * 4, 4)


def test_defect_4_the_sign_of_the_rise_decides_and_not_a_coin():
    for seed in range(30):
        growing = expansion(rule=Paper(), leaves=4, roots=2, seed=seed)
        growing.start()
        for root, head in ((0, 0.9), (1, 1.1)):
            root_to_tip(growing, root, [1.0] * 4)
            growing.feed(HeadKnown((root, 0), floats([head] * 4)))
        assert [growing.decisions[root,].decided.granted for root in (0, 1)] == [0, 1]


def test_defect_4_scarce_leaves_go_to_the_highest_rise_and_not_to_the_lowest_index():
    growing = expansion(rule=Paper(), leaves=4, roots=3)
    growing.start()
    for root, head in enumerate((1.1, 1.2, 1.9)):
        root_to_tip(growing, root, [1.0] * 4)
        growing.feed(HeadKnown((root, 0), floats([head] * 4)))
    assert [growing.decisions[root,].decided.granted for root in range(3)] == [0, 0, 1]


def test_defect_4_trajectories_without_a_tool_call_never_branch():
    for seed in range(20):
        grown = grow(World(seed=seed, go_on=0.5), seed, rule=Fixed(siblings=3), leaves=12, roots=4)
        called = {place for place, turn in grown.tree.turns.items() if turn.calls}
        assert set(grown.decisions) <= called
        siblings = [place for place, turn in grown.tree.turns.items() if turn.role is Role.SIBLING]
        assert all(place[:-1] in called for place in siblings)


def test_defect_5_missing_leaves_start_from_the_prompt_at_once_and_together():
    """16 leaves, 8 roots, no tool call: the moment that no root can branch, all missing leaves are asked for in one
    go."""
    growing = expansion(rule=Paper(), leaves=16, roots=8)
    growing.start()
    fills: list[list] = []
    for root in range(8):
        ended = TurnEnded(turn((root,), Role.ROOT, [1.0] * 4, calls=False), StopReason.FINISHED)
        fills.append([c for c in growing.feed(ended) if isinstance(c, SampleTurn) and c.role is Role.FILL])
    # each root that ends gives its two places back as soon as the others cannot use them
    assert [len(batch) for batch in fills] == [0, 0, 0, 0, 2, 2, 2, 2]
    places = [c.place for batch in fills for c in batch]
    assert places == [(root,) for root in range(8, 16)]


def test_defect_5_fills_are_new_samples_and_not_copies():
    grown = grow(World(seed=0, go_on=0.0), rule=Paper(), leaves=8, roots=2)
    assert len({tuple(grown.tree.turns[leaf].tokens) for leaf in grown.tree.leaves()}) == 8
    assert [grown.tree.turns[leaf].role for leaf in grown.tree.leaves()].count(Role.FILL) == 6


def test_defect_6_nobody_waits_for_the_slowest():
    """Root 1 has not written a token while root 0 calls, is judged, branches, and ends with its sibling."""
    growing = expansion(rule=Paper(), leaves=4, roots=2)
    growing.start()
    root_to_tip(growing, 0, [1.0] * 4)
    commands = growing.feed(HeadKnown((0, 0), floats([2.0] * 4)))
    assert [type(c) for c in commands] == [Decided, SampleTurn] and not commands[0].waited
    growing.feed(TurnEnded(turn((0, 0), Role.PROBE, [2.0] * 6, calls=False), StopReason.FINISHED))
    growing.feed(TurnEnded(turn((0, 1), Role.SIBLING, [1.0] * 4, calls=False), StopReason.FINISHED))
    assert growing.tree.leaves() == [(0, 0), (0, 1)] and (1,) not in growing.tree.turns


def test_defect_6_siblings_start_when_the_head_is_known_and_not_when_the_probe_ends():
    growing = expansion(rule=Paper(), leaves=2, roots=1)
    growing.start()
    root_to_tip(growing, 0, [1.0] * 4)
    commands = growing.feed(HeadKnown((0, 0), floats([2.0] * 4)))
    assert SampleTurn((0, 1), Role.SIBLING) in commands and (0, 0) not in growing.tree.turns


def test_defect_7_an_empty_output_is_a_result_and_runs_once():
    growing = expansion(rule=Paper(), leaves=1, roots=1, retries=3)
    growing.start()
    first = turn((0,), Role.ROOT, [1.0])
    assert growing.feed(TurnEnded(first)) == [RunCalls((0,), first.calls)]
    empty = returned((0,), text="")
    assert growing.feed(empty) == [SampleTurn((0, 0), Role.PROBE)]
    assert growing.tree.observations[0,] == empty.observation


def test_defect_7_errors_are_no_successes():
    ran = {status: ToolCallResult(tool="t", status=status, text="").ran for status in CallStatus}
    assert ran == {
        CallStatus.OK: True,
        CallStatus.ERROR: True,
        CallStatus.TIMEOUT: True,
        CallStatus.REFUSED: False,
        CallStatus.UNAVAILABLE: False,
    }
    assert len(set(CallStatus)) == 5  # an error has a name of its own


def test_defect_12_an_ending_adds_no_token():
    growing = expansion(rule=Paper(), leaves=1, roots=1)
    growing.start()
    last = turn((0,), Role.ROOT, [1.0, 1.0, 1.0])
    growing.feed(TurnEnded(last, StopReason.CALL_LIMIT))
    assert growing.tree.branch((0,)).tokens == growing.tree.prompt.tokens + last.tokens
    assert growing.done


def test_defect_15_randomness_is_keyed_and_never_global():
    """A drawing rule gives the same tree whatever the process drew before, and another one under another seed."""

    def tree(seed):
        return grow(World(seed=8, go_on=1.0), Random(0), rule=Chance(), leaves=12, roots=6, seed=seed).tree

    random.seed(1)
    one = tree(0)
    random.seed(2)
    random.random()
    assert one == tree(0)
    assert any(one.leaves() != tree(seed).leaves() for seed in range(1, 5))


def test_defect_5_without_branching_all_leaves_start_at_once():
    """Without branching, M leaves are M samples from the prompt, asked for at once: no rounds, no further request."""
    tree = RolloutTree("t", 0, Prompt(tokens=array("i", [1])))
    growing = Expansion(
        tree, leaves=6, roots=4, rule=Never(), head=4, vocab_size=VOCAB, stats=StepStats(step=0), seed=0
    )
    asked = growing.start()
    assert [c.role for c in asked] == [Role.ROOT] * 4 + [Role.FILL] * 2
