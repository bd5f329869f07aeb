"""Laws of the tree."""

from array import array
from random import Random

import pytest
from expansion_world import Drive, Whim, World, expansion, grow
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core import (
    Branch,
    Fixed,
    Observation,
    Paper,
    Prompt,
    Role,
    RolloutTree,
    StopReason,
    Turn,
    fork_weights,
    probe_lines,
    read_place,
    show,
)

trees = st.builds(
    lambda seed, leaves, timing: (
        grow(World(seed=seed, fails=0.1), timing, rule=Whim(seed), leaves=leaves, roots=min(3, leaves)).tree
    ),
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(0, 10**6),
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_tree_laws(tree):
    for place in tree.turns:
        assert place[:-1] == () or place[:-1] in tree.observations
        assert (place in tree.observations) != (
            place in tree.endings
        )  # finished trees: every turn goes on or is a leaf
    for place in [(), *tree.turns]:
        assert tree.children(place) == sorted(p for p in tree.turns if p[:-1] == place and p)  # the slow twin
    assert tree.leaves() == sorted(tree.endings)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_branches_concatenate_what_the_tree_stores_once(tree):
    for branch in tree.branches():
        assert isinstance(branch, Branch)
        wrote = branch.leaf in tree.turns
        path = [branch.leaf[:depth] for depth in range(1, len(branch.leaf) + 1 if wrote else len(branch.leaf))]
        tokens = array("i", tree.prompt.tokens)
        for place in path:
            tokens += tree.turns[place].tokens
            if place in tree.observations:
                tokens += tree.observations[place].tokens
        assert branch.tokens == tokens
        assert [turn.place for turn in branch.turns] == path
        assert tree.context(branch.leaf[:-1]) == (
            tokens[: len(tokens) - len(tree.turns[branch.leaf].tokens)] if wrote else tokens
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_tree_only_grows(seed, timing):
    drive = Drive(expansion(rule=Whim(seed)), World(seed=seed), Random(timing))
    drive._obey(drive.expansion.start())
    tree = drive.expansion.tree
    while drive.pending:
        before = dict(tree.turns), dict(tree.observations), dict(tree.endings)
        drive.step()
        for old, new in zip(before, (tree.turns, tree.observations, tree.endings), strict=True):
            assert old.items() <= {place: new[place] for place in old}.items()


def turn(*place, role=Role.ROOT):
    return Turn(place=place, role=role, tokens=array("i", [1]), logprobs=array("f", [0]), entropies=array("f", [0]))


def observation(*place):
    return Observation(place=place, tokens=array("i", [2]), outcomes=())


def empty_tree():
    return RolloutTree("t", 0, Prompt(tokens=array("i", [9])))


def test_segments_without_a_place_are_refused():
    tree = empty_tree()
    for segment in (turn(), turn(0, 0), observation(0)):
        with pytest.raises(ValueError):
            tree.grow(segment)
    tree.grow(turn(0))
    with pytest.raises(ValueError, match="already has a turn"):
        tree.grow(turn(0))
    tree.grow(observation(0))
    for attempt in (lambda: tree.grow(observation(0)), lambda: tree.end((0,), StopReason.FINISHED)):
        with pytest.raises(ValueError, match="already has"):
            attempt()


def test_only_an_infrastructure_failure_ends_a_turn_that_was_never_written():
    tree = empty_tree()
    with pytest.raises(ValueError, match="no turn"):
        tree.end((0,), StopReason.FINISHED)
    with pytest.raises(ValueError, match="no turn"):
        tree.end((), StopReason.ENGINE_FAILED)
    with pytest.raises(ValueError, match="no observation before it"):
        tree.end((3, 0), StopReason.ENGINE_FAILED)
    tree.end((0,), StopReason.ENGINE_FAILED)
    with pytest.raises(ValueError, match="already has a turn"):
        tree.grow(turn(0))
    assert tree.branch((0,)).segments == (tree.prompt,)


def test_equality_ignores_the_order_of_growth():
    one, other = empty_tree(), empty_tree()
    for tree, order in ((one, (0, 1)), (other, (1, 0))):
        for root in order:
            tree.grow(turn(root))
            tree.end((root,), StopReason.FINISHED)
    assert one == other
    other = empty_tree()
    other.grow(turn(0))
    assert one != other and one != "tree"


def test_probe_lines_are_plain_policy_samples():
    """Without siblings and fills, the probe lines are the trajectories that the same policy writes without
    branching."""
    world = World(seed=4, go_on=0.8)
    grown = grow(world, rule=Fixed(siblings=2), leaves=12, roots=4)
    lines = probe_lines(grown.tree, grown.planned_roots)
    alone = grow(world, rule=Fixed(at=9), leaves=4, roots=4)
    assert [leaf[0] for leaf in lines] == [0, 1, 2, 3]
    assert lines == alone.tree.leaves()
    assert [grown.tree.branch(leaf).tokens for leaf in lines] == [alone.tree.branch(leaf).tokens for leaf in lines]
    assert grown.num_branches and grown.fills and not set(lines) & set(grown.fills)


@settings(max_examples=50, deadline=None)
@given(trees, st.randoms())
def test_fork_weights_are_the_chance_of_a_random_walk(tree, random):
    def walk(place, chance, leaves):
        children = sorted({leaf[: len(place) + 1] for leaf in leaves if leaf[: len(place)] == place and leaf != place})
        if not children:
            return {place: chance}
        return {
            leaf: weight for child in children for leaf, weight in walk(child, chance / len(children), leaves).items()
        }

    assert fork_weights(tree) == pytest.approx(walk((), 1.0, tree.leaves()))
    some = random.sample(tree.leaves(), random.randint(1, len(tree.leaves())))
    assert sum(fork_weights(tree, some).values()) == pytest.approx(1)
    assert fork_weights(tree, some) == pytest.approx(walk((), 1.0, some))
    with pytest.raises(ValueError, match="not a finished leaf"):
        fork_weights(tree, [(99,)])


@settings(deadline=None)
@given(st.lists(st.integers(0, 30)).map(tuple))
def test_places_read_as_they_show(place):
    assert read_place(show(place)) == place


def test_repr_counts():
    assert (
        repr(grow(World(seed=1, go_on=0.0), rule=Paper(), leaves=2, roots=2).tree)
        == "RolloutTree('task', step=3, turns=2, leaves=2)"
    )
