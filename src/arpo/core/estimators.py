"""Estimators of credit beyond the group's own mean: pure functions of scored trees (docs/method.md, section 5).

Each takes the trees of a step and the configuration, with its options as keyword arguments, and returns the credit of
every (turn, scored leaf) pair of each tree, in order. Knows rewards, entropies and which leaves share which turns.
Refuses to know losses and what a reward means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from arpo.core.place import Place, keyed
from arpo.errors import ConfigError

if TYPE_CHECKING:
    from arpo.core.credit import AdvantageConfig, ScoredTree

Pair: TypeAlias = "tuple[Place, Place]"
"""(turn, leaf)."""
Credit: TypeAlias = "dict[Pair, float]"
Mask: TypeAlias = "Mapping[Pair, Sequence[bool]]"
"""By (turn, leaf), for each token of the turn, whether it enters the loss; a pair that is missing enters whole."""


def turns_of(leaf: Place) -> list[Place]:
    """The turns on the path to `leaf`, from its root."""
    return [leaf[:depth] for depth in range(1, len(leaf) + 1)]


def differ(values: Iterable[float]) -> bool:
    """Whether some values differ by more than the rounding of their sums."""
    numbers = [*values]
    return bool(numbers) and max(numbers) - min(numbers) > 1e-9 * max(1.0, *map(abs, numbers))


def normalised(values: Sequence[float], eps: float, *, std: bool = True) -> list[float]:
    """`(x - mean) / (std + eps)`, or `x - mean`; 0 everywhere if the values do not differ."""
    if not differ(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    centred = [value - mean for value in values]
    scale = math.sqrt(math.fsum(c * c for c in centred) / len(centred)) + eps if std else 1.0
    return [c / scale for c in centred]


def returns_of(scored: ScoredTree, gamma: float) -> Credit:
    """`G_t = sum over k >= t of gamma^(k - t) r_k` for every turn t of every leaf's path: r_k is the reward of turn k,
    and the leaf's own reward comes with the last turn."""
    result: Credit = {}
    for leaf in sorted(scored.scores):
        score = scored.scores[leaf]
        value = score.reward
        for depth in range(len(leaf), 0, -1):
            value = value if depth == len(leaf) else gamma * value
            value += score.turns[depth - 1] if score.turns else 0.0
            result[leaf[:depth], leaf] = value
    return result


def whitened_baseline(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Credit]:
    """`R - mean of the group`, then normalised over the leaves of all trees (REINFORCE++-baseline,
    arXiv 2501.03262)."""
    centred = [normalised(_rewards(scored), config.eps, std=False) for scored in trees]
    return _by_leaf(trees, _over_all(centred, config.eps))


def length_weighted(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Credit]:
    """`R - sum l R / sum l`, with l the tokens that the policy wrote on the leaf's path (OPO, arXiv 2505.23585)."""
    values = []
    for scored in trees:
        rewards = _rewards(scored)
        lengths = [
            sum(len(scored.tree.turns[turn].tokens) for turn in turns_of(leaf)) for leaf in sorted(scored.scores)
        ]
        total = sum(lengths)
        mean = math.fsum(n * r for n, r in zip(lengths, rewards, strict=True)) / total if total else 0.0
        values.append([r - mean if differ(rewards) and total else 0.0 for r in rewards])
    return _by_leaf(trees, values)


def maxrl(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Credit]:
    """`(R - mean) / mean`; 0 where the mean is 0 (MaxRL, arXiv 2602.02710). Raises ConfigError for a reward below 0."""
    values = []
    for scored in trees:
        rewards = _rewards(scored)
        if min(rewards, default=0.0) < 0:
            raise ConfigError(
                f"maxrl divides by the mean reward, and task {scored.tree.task} has the reward {min(rewards)}",
                where="advantage.estimator",
                value="maxrl",
                hint="Use rewards from 0 up, or another estimator",
            )
        mean = math.fsum(rewards) / len(rewards) if rewards else 0.0
        values.append([c / mean if mean else 0.0 for c in normalised(rewards, 0.0, std=False)])
    return _by_leaf(trees, values)


def gdpo(
    trees: Sequence[ScoredTree], config: AdvantageConfig, *, weights: Mapping[str, float] | None = None
) -> list[Credit]:
    """`sum w_n z_n`, z_n the group-normalised part n of the score, then normalised over all leaves (GDPO, arXiv
    2601.05242). `weights`: by name of a part; none: 1 for each part that every score has. Raises ConfigError for a part
    that a score does not have."""
    values = []
    for scored in trees:
        leaves = sorted(scored.scores)
        parts = [scored.scores[leaf].parts for leaf in leaves]
        names = weights or dict.fromkeys(sorted(set.intersection(*map(set, parts))) if parts else (), 1.0)
        total = [0.0] * len(leaves)
        for name, weight in names.items():
            if missing := next((leaf for leaf, own in zip(leaves, parts, strict=True) if name not in own), None):
                raise ConfigError(
                    f"a score of task {scored.tree.task} has no such part",
                    where="advantage.estimator.options.weights",
                    value=name,
                    hint=f"It has {', '.join(scored.scores[missing].parts)}",
                )
            column = normalised([float(own[name]) for own in parts], config.eps)
            total = [t + weight * z for t, z in zip(total, column, strict=True)]
        values.append(total)
    return _by_leaf(trees, _over_all(values, config.eps))


def tree_grpo(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Credit]:
    """`A_intra + A_inter`: the reward normalised over the leaves of the same root, plus the reward normalised over all
    leaves of the task (Tree-GRPO, arXiv 2509.21240, whose trees are our roots)."""
    values = []
    for scored in trees:
        leaves, rewards = sorted(scored.scores), _rewards(scored)
        intra = _within([leaf[0] for leaf in leaves], rewards, config.eps)
        values.append([a + b for a, b in zip(intra, normalised(rewards, config.eps), strict=True)])
    return _by_leaf(trees, values)


def sibling(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Credit]:
    """From a fork on, `(mean reward below the branch - mean over its siblings of theirs) / (std + eps)`, up to the next
    fork; before the first fork GRPO's advantage of the leaf. std is that of the task's leaves, so that both have one
    unit. 0 at a fork where all agree."""
    result: list[Credit] = []
    for scored in trees:
        leaves, rewards = sorted(scored.scores), _rewards(scored)
        group = dict(zip(leaves, normalised(rewards, config.eps), strict=True))
        mean = math.fsum(rewards) / len(rewards) if rewards else 0.0
        scale = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / max(len(rewards), 1)) + config.eps
        below = {turn: math.fsum(v) / len(v) for turn, v in _below(scored, group).items()}
        forks: dict[Place, float] = {}
        for turn, siblings in _siblings(below).items():
            others = math.fsum(below[other] for other in siblings) / len(siblings) if siblings else 0.0
            if len(turn) > 1 and siblings:
                forks[turn] = (below[turn] - others) / scale if differ([below[turn], others]) else 0.0
        credit: Credit = {}
        for leaf in leaves:
            value = group[leaf]
            for turn in turns_of(leaf):
                value = forks.get(turn, value)
                credit[turn, leaf] = value
        result.append(credit)
    return result


def gigpo(
    trees: Sequence[ScoredTree],
    config: AdvantageConfig,
    *,
    weight: float = 1.0,
    gamma: float = 0.95,
    std: bool = True,
    anchor: str = "tip",
) -> list[Credit]:
    """`A_E + w A_S`: GRPO's advantage of the leaf, plus the discounted return of its turn normalised over the leaves
    whose turn follows the same anchor state (GiGPO, arXiv 2505.10978). `anchor`: `tip`, an exact state, which the
    children of a tip share; `text`, as in the paper, also tips on other lines that read the same last results. 0 where
    one turn follows an anchor: nothing was compared there. `std`: False leaves out the division. Raises ConfigError."""
    if anchor not in ("tip", "text"):
        where = "advantage.estimator.options.anchor"
        raise ConfigError("what is an anchor state", where=where, value=anchor, hint="One of tip, text")
    result: list[Credit] = []
    for scored in trees:
        episode = dict(zip(sorted(scored.scores), normalised(_rewards(scored), config.eps, std=std), strict=True))
        returns = returns_of(scored, gamma)
        pairs = sorted(returns)
        seen = {
            tip: tuple(o.tokens) if anchor == "text" else tip for tip, o in scored.tree.observations.items()
        }  # roots follow the prompt: ()
        keys = [seen.get(turn[:-1], ()) for turn, _ in pairs]
        following: dict[Hashable, set[Place]] = defaultdict(set)
        for key, (turn, _) in zip(keys, pairs, strict=True):
            following[key].add(turn)
        step = _within(keys, [returns[pair] for pair in pairs], config.eps, std=std)
        result.append(
            {
                pair: episode[pair[1]] + weight * a * (len(following[key]) > 1)
                for key, pair, a in zip(keys, pairs, step, strict=True)
            }
        )
    return result


def subtree(trees: Sequence[ScoredTree], config: AdvantageConfig, *, gamma: float = 1.0) -> list[Credit]:
    """The value of a turn is `r + gamma * mean of its children's values`, with r the reward of the turn (for a leaf
    also its own), normalised over the task's turns, each counted once (TreePO, arXiv 2508.17445; AReaL's tree
    discount)."""
    result: list[Credit] = []
    for scored in trees:
        turns = sorted({turn for leaf in scored.scores for turn in turns_of(leaf)}, key=len, reverse=True)
        children: dict[Place, list[float]] = defaultdict(list)
        values: dict[Place, float] = {}
        for turn in turns:
            own = [s.turns[len(turn) - 1] for leaf, s in scored.scores.items() if s.turns and leaf[: len(turn)] == turn]
            value = math.fsum(own) / len(own) if own else 0.0
            value += scored.scores[turn].reward if turn in scored.scores else 0.0
            value += gamma * math.fsum(children[turn]) / len(children[turn]) if children[turn] else 0.0
            values[turn] = value
            children[turn[:-1]].append(value)
        by_turn = dict(zip(turns, normalised([values[turn] for turn in turns], config.eps), strict=True))
        result.append({(turn, leaf): by_turn[turn] for leaf in sorted(scored.scores) for turn in turns_of(leaf)})
    return result


def returns(trees: Sequence[ScoredTree], config: AdvantageConfig, *, gamma: float = 1.0) -> list[Credit]:
    """The discounted return of a turn, normalised over all (turn, leaf) pairs of the task."""
    result: list[Credit] = []
    for scored in trees:
        by_pair = returns_of(scored, gamma)
        result.append(dict(zip(by_pair, normalised([*by_pair.values()], config.eps), strict=True)))
    return result


def empg(
    trees: Sequence[ScoredTree],
    config: AdvantageConfig,
    *,
    k: float = 1.0,
    k_next: float = 1.0,
    zeta: float = 0.05,
) -> list[Credit]:
    """`A g(H_t) + zeta f(H_(t+1))`, less its mean over the step: A is GRPO's advantage, H_t the mean entropy of a turn,
    h its place between the step's lowest and highest, `g = exp(-k h) / mean exp(-k h)` and `f = exp(-k_next h)`, which
    the last turn of a path has not (EMPG, arXiv 2509.09265)."""
    pairs = [
        (number, turn, leaf)
        for number, scored in enumerate(trees)
        for leaf in sorted(scored.scores)
        for turn in turns_of(leaf)
    ]
    if not pairs:
        return [{} for _ in trees]
    mean_of: dict[tuple[int, Place], float] = {}
    for number, turn, _ in pairs:
        entropies = trees[number].tree.turns[turn].entropies
        mean_of[number, turn] = math.fsum(entropies) / len(entropies) if entropies else 0.0
    low, high = min(mean_of.values()), max(mean_of.values())
    h = {key: (value - low) / (high - low) if high > low else 0.0 for key, value in mean_of.items()}
    scale = math.fsum(math.exp(-k * h[number, turn]) for number, turn, _ in pairs) / len(pairs)
    group = [dict(zip(sorted(s.scores), normalised(_rewards(s), config.eps), strict=True)) for s in trees]
    values = []
    for number, turn, leaf in pairs:
        bonus = math.exp(-k_next * h[number, leaf[: len(turn) + 1]]) if len(turn) < len(leaf) else 0.0
        values.append(group[number][leaf] * math.exp(-k * h[number, turn]) / scale + zeta * bonus)
    centre = math.fsum(values) / len(values)
    result: list[Credit] = [{} for _ in trees]
    for (number, turn, leaf), value in zip(pairs, values, strict=True):
        result[number][turn, leaf] = value - centre
    return result


ESTIMATORS: Mapping[str, Callable[..., list[Credit]]] = {
    "reinforce++-baseline": whitened_baseline,
    "opo": length_weighted,
    "maxrl": maxrl,
    "gdpo": gdpo,
    "tree_grpo": tree_grpo,
    "sibling": sibling,
    "gigpo": gigpo,
    "subtree": subtree,
    "returns": returns,
    "empg": empg,
}
"""By the name in a recipe. Those of the group's own mean are in `arpo.core.credit`."""
OVER_STEP: Collection[str] = ("reinforce++", "empg")
"""Estimators by which a group whose rewards are all equal teaches something too."""


def high_entropy(trees: Sequence[ScoredTree], config: AdvantageConfig, *, share: float = 0.2) -> list[Mask]:
    """The `share` of the step's trained tokens with the highest entropy, by the engine (80/20, arXiv 2506.01939). Ties
    at the edge all enter."""
    turns = {(n, turn) for n, scored in enumerate(trees) for leaf in scored.scores for turn in turns_of(leaf)}
    ranked = sorted((e for n, turn in turns for e in trees[n].tree.turns[turn].entropies), reverse=True)
    edge = ranked[max(math.ceil(share * len(ranked)) - 1, 0)] if ranked else 0.0
    return [
        {
            (turn, leaf): [entropy >= edge for entropy in scored.tree.turns[turn].entropies]
            for leaf in sorted(scored.scores)
            for turn in turns_of(leaf)
        }
        for scored in trees
    ]


def overlong(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Mask]:
    """Leaves that the limit of a turn or a branch cut off leave the loss; they still count in the group's mean (DAPO's
    overlong filtering, arXiv 2503.14476)."""
    return [
        {
            (turn, leaf): [False] * len(scored.tree.turns[turn].tokens)
            for leaf in sorted(scored.scores)
            if scored.tree.endings[leaf] in ("turn_length", "branch_length")
            for turn in turns_of(leaf)
        }
        for scored in trees
    ]


def clip_cov(
    trees: Sequence[ScoredTree],
    config: AdvantageConfig,
    *,
    credit: Sequence[Mapping[Pair, float]],
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> list[Mask]:
    """Drops `share` of the step's tokens, drawn from those whose `(ln p - mean ln p)(A - mean A)` is in [low, high]:
    ln p by the engine, means over the tokens of all rows (Clip-Cov, arXiv 2505.22617)."""
    rows = [(n, turn, leaf) for n, own in enumerate(credit) for turn, leaf in sorted(own)]
    tokens = [
        (logprob, credit[n][turn, leaf], n, turn, leaf, at)
        for n, turn, leaf in rows
        for at, logprob in enumerate(trees[n].tree.turns[turn].logprobs)
    ]
    mean_p = math.fsum(token[0] for token in tokens) / max(len(tokens), 1)
    mean_a = math.fsum(token[1] for token in tokens) / max(len(tokens), 1)
    able = [token[2:] for token in tokens if low <= (token[0] - mean_p) * (token[1] - mean_a) <= high]
    tree = trees[0].tree if trees else None
    random = keyed(0, tree.step, tree.task, (), "clip_cov") if tree is not None else None
    count = min(math.floor(share * len(tokens)), len(able))
    masks: list[dict[Pair, list[bool]]] = [{} for _ in trees]
    for n, turn, leaf, at in random.sample(able, count) if random is not None else ():
        masks[n].setdefault((turn, leaf), [True] * len(trees[n].tree.turns[turn].tokens))[at] = False
    return [*masks]


MASKS: Mapping[str, Callable[..., Sequence[Mask]]] = {
    "high_entropy": high_entropy,
    "overlong": overlong,
    "clip_cov": clip_cov,
}


def _rewards(scored: ScoredTree) -> list[float]:
    return [scored.scores[leaf].reward for leaf in sorted(scored.scores)]


def _by_leaf(trees: Sequence[ScoredTree], values: Sequence[Sequence[float]]) -> list[Credit]:
    """Every turn of a path has its leaf's value."""
    return [
        {(turn, leaf): value for leaf, value in zip(sorted(scored.scores), own, strict=True) for turn in turns_of(leaf)}
        for scored, own in zip(trees, values, strict=True)
    ]


def _over_all(values: Sequence[Sequence[float]], eps: float) -> list[list[float]]:
    whole = iter(normalised([value for own in values for value in own], eps))
    return [[next(whole) for _ in own] for own in values]


def _within(keys: Sequence[Hashable], values: Sequence[float], eps: float, *, std: bool = True) -> list[float]:
    """Values normalised among those of the same key."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        groups[key].append(at)
    result = [0.0] * len(values)
    for members in groups.values():
        for at, value in zip(members, normalised([values[at] for at in members], eps, std=std), strict=True):
            result[at] = value
    return result


def _below(scored: ScoredTree, leaves: Iterable[Place]) -> dict[Place, list[float]]:
    """The rewards of the leaves below each turn."""
    below: dict[Place, list[float]] = defaultdict(list)
    for leaf in leaves:
        for turn in turns_of(leaf):
            below[turn].append(scored.scores[leaf].reward)
    return below


def _siblings(turns: Iterable[Place]) -> dict[Place, list[Place]]:
    """The other children of each turn's parent."""
    children: dict[Place, list[Place]] = defaultdict(list)
    for turn in turns:
        children[turn[:-1]].append(turn)
    return {turn: [t for t in own if t != turn] for own in children.values() for turn in own}
