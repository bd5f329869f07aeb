"""Which leaves of a tree stand in one pack, and on which of its contexts, so that every pack keeps to a budget of
tokens and copies of trunks cost the fewest.

Knows places and numbers of tokens. Refuses to know tensors: `arpo.learner.packing` lays groups out.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from arpo.core.credit import CreditedTree
from arpo.core.place import Place, show
from arpo.core.tree import RolloutTree
from arpo.errors import ConfigError, FormatError


@dataclass(frozen=True, slots=True, eq=False)
class LeafGroup:
    """Leaves of one tree that are trained together, in preorder, on their turns in one context or in all."""

    number: int
    """The tree's index in the arguments of `pack`."""
    tree: CreditedTree
    leaves: tuple[Place, ...]
    context: Place | None = None
    """Where the context starts; None: all of them."""

    @property
    def contexts(self) -> dict[Place, list[Place]]:
        """Places of the turns by the start of their context, all in preorder."""
        turns: dict[Place, set[Place]] = {}
        for leaf in self.leaves:
            for start, last in self._on_path(leaf):
                turns.setdefault(start, set()).update(_between(start, last))
        return {start: sorted(places) for start, places in sorted(turns.items())}

    def last_turns(self, start: Place) -> Mapping[Place, int]:
        """Last turns in the context from `start`, and how many leaves lie at or below each."""
        return Counter(last for leaf in self.leaves for at, last in self._on_path(leaf) if at == start)

    def _on_path(self, leaf: Place) -> list[tuple[Place, Place]]:
        return [pair for pair in self.tree.tree.contexts(leaf) if self.context in (None, pair[0])]

    @property
    def num_tokens(self) -> int:
        return sum(_num_tokens(self.tree.tree, [start], places) for start, places in self.contexts.items())

    @property
    def num_pairs(self) -> int:
        """(query, key) pairs that attention computes: each token and those of its path up to itself."""
        rollout, pairs = self.tree.tree, 0
        for start, places in self.contexts.items():
            depth = {start: len(rollout.opening(start))}
            pairs += depth[start] * (depth[start] + 1) // 2
            for place in places:
                length, before = _num_tokens(rollout, [], [place]), depth[place[:-1]]
                depth[place] = before + length
                pairs += length * before + length * (length + 1) // 2
        return pairs


def leaf_groups(
    trees: Sequence[CreditedTree], token_budget: int, *, flat: bool = False, whole: bool = False
) -> list[LeafGroup]:
    """The leaves of `trees` that have credit, in groups that fit into a pack; raises as `pack` does."""
    if token_budget < 1:
        raise ConfigError(
            "a pack must hold at least one token", where="token_budget", value=token_budget, hint="a few thousand"
        )
    for tree in trees:
        if strange := [
            show(leaf) for leaf in tree.advantages if leaf not in tree.tree.turns or leaf not in tree.tree.endings
        ]:
            raise FormatError(
                f"task {tree.tree.task!r}: credit for {', '.join(strange)}, which are no leaves with a turn"
            )
    return [
        LeafGroup(number, tree, leaves, context)
        for number, tree in enumerate(trees)
        for context, by_last in _contexts(tree, whole=whole, flat=flat).items()
        for leaves in (
            [(leaf,) for below in by_last.values() for leaf in below]
            if flat
            else _groups(tree.tree, context, by_last, token_budget)
        )
    ]


def _contexts(tree: CreditedTree, *, whole: bool, flat: bool) -> dict[Place | None, dict[Place, list[Place]]]:
    """By the start of a context its last turns, each with the leaves at or below it, in preorder. `whole`: the leaves,
    for all contexts together."""
    leaves, on_path = sorted(tree.advantages), tree.tree.contexts
    if whole or not any(seen.new_context for seen in tree.tree.observations.values()):
        if flat and any(len(on_path(leaf)) > 1 for leaf in leaves):
            raise ConfigError(
                "averages over a trajectory, whose contexts a model without tree attention computes one by one",
                where="loss.surrogate",
                hint="take one whose ratio is of tokens or turns, such as gspo_turn, or rollout.context: keep",
            )
        return {None: {leaf: [leaf] for leaf in leaves}}
    contexts: dict[Place | None, dict[Place, list[Place]]] = {}
    for leaf in leaves:
        for start, last in on_path(leaf):
            contexts.setdefault(start, {}).setdefault(last, []).append(leaf)
    return contexts


def _groups(
    rollout: RolloutTree, context: Place | None, by_last: Mapping[Place, Sequence[Place]], token_budget: int
) -> list[tuple[Place, ...]]:
    """Leaves of consecutive last turns so that each group fits, with the fewest tokens over all groups, then the fewest
    groups.

    In preorder a path shares most with the path before it, so a group costs its first path plus what each further one
    adds.
    """
    lasts = [*by_last]
    paths = [_path(rollout, context, last) for last in lasts]
    full = [_num_tokens(rollout, *path) for path in paths]
    added = full[:1]
    for (starts, turns), (more_starts, more_turns) in pairwise(paths):
        added.append(_num_tokens(rollout, more_starts - starts, more_turns - turns))
    if sum(added) <= token_budget:  # one group copies nothing
        edges = [0, len(lasts)] if lasts else []
    else:
        edges = _cheapest_cuts(full, added, token_budget)
    return [tuple(leaf for last in lasts[a:b] for leaf in by_last[last]) for a, b in pairwise(edges)]


def _cheapest_cuts(full: Sequence[int], added: Sequence[int], token_budget: int) -> list[int]:
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # of the first j paths: tokens, groups, where the last group starts
    for stop in range(1, len(full) + 1):
        ways = []
        for start in range(stop - 1, -1, -1):
            cost = full[start] + sum(added[start + 1 : stop])
            if cost > token_budget and start < stop - 1:
                break
            ways.append((best[start][0] + cost, best[start][1] + 1, start))
        best.append(min(ways))
    edges = [len(full)]
    while edges[-1]:
        edges.append(best[edges[-1]][2])
    return edges[::-1]


def fill(groups: Iterable[LeafGroup], token_budget: int) -> list[list[LeafGroup]]:
    """Put each group into the first pack that has room for it."""
    packs: list[list[LeafGroup]] = []
    room: list[int] = []
    for group in groups:
        need = group.num_tokens
        at = next((i for i, left in enumerate(room) if need <= left), None)
        if at is None:
            packs.append([group])
            room.append(token_budget - need)
        else:
            packs[at].append(group)
            room[at] -= need
    return packs


def _path(rollout: RolloutTree, context: Place | None, last: Place) -> tuple[set[Place], set[Place]]:
    """Starts of contexts and turns on the path to `last`, of one context or of all."""
    if context is not None:
        return {context}, set(_between(context, last))
    return {start for start, _ in rollout.contexts(last)}, set(_between((), last))


def _between(start: Place, last: Place) -> list[Place]:
    """Places of the turns from the start of a context to its last turn."""
    return [last[:depth] for depth in range(len(start) + 1, len(last) + 1)]


def observed(rollout: RolloutTree, place: Place) -> "array[int]":
    """What follows the turn at `place` in its own context: tokens of its observation, none where that opens another."""
    seen = rollout.observations.get(place)
    return array("i") if seen is None or seen.new_context else seen.tokens


def _num_tokens(rollout: RolloutTree, starts: Iterable[Place], turns: Iterable[Place]) -> int:
    count = sum(len(rollout.opening(start)) for start in starts)
    return count + sum(len(rollout.turns[place].tokens) + len(observed(rollout, place)) for place in turns)
