"""Turns the rewards of leaves into the credit of turns (docs/method.md, sections 5 and 6).

Knows rewards and which leaves share which turns. Refuses to know tokens, losses and what a reward means.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from arpo.core.place import Place, show
from arpo.core.score import Score
from arpo.core.tree import RolloutTree
from arpo.errors import ConfigError

Estimator = Literal["grpo", "dr_grpo", "rloo", "reinforce++"]
Weighting = Literal["leaves", "tree"]


@dataclass(frozen=True, slots=True)
class ScoredTree:
    """A tree with the scores of its leaves. A leaf that an infrastructure failure aborted has no score."""

    tree: RolloutTree
    scores: Mapping[Place, Score]


@dataclass(frozen=True, slots=True)
class CreditedTree:
    """A scored tree with the advantage of every scored leaf, and the credit of every (turn, leaf) pair on its path."""

    scored: ScoredTree
    advantages: Mapping[Place, float]  # A_i by leaf
    credit: Mapping[tuple[Place, Place], float]  # A(s, i) by (turn, leaf); see `attribute`

    @property
    def tree(self) -> RolloutTree:
        return self.scored.tree


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageConfig:
    """How rewards become advantages, and how the leaves below a shared turn divide its credit."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Estimator = "grpo"
    """grpo: (R - mean) / (std + eps) over the task's leaves; dr_grpo: without std; rloo: R - mean of the other leaves;
    reinforce++: (R - mean) / (std + eps) over the whole batch."""
    weighting: Weighting = "leaves"
    """leaves: every leaf has the same weight in mean and std; tree: every root has the same weight, which its leaves
    share equally (a fill is a root too)."""
    blend: float = 0.0
    """a: 0 gives every turn its leaf's own advantage (the paper's soft form), 1 the mean over the leaves below the turn
    (the hard form)."""
    eps: float = 1e-6
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        if self.estimator not in ("grpo", "dr_grpo", "rloo", "reinforce++"):
            raise ValueError(f"estimator must be grpo, dr_grpo, rloo or reinforce++ (got {self.estimator!r})")
        if self.weighting not in ("leaves", "tree"):
            raise ValueError(f"weighting must be leaves or tree (got {self.weighting!r})")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must be from 0 to 1 (got {self.blend!r})")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be at least 0 and finite (got {self.eps!r})")


def credit(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[CreditedTree]:
    """The advantage of every scored leaf, and the credit of every (turn, scored leaf) pair.

    Leaves without a score leave the group. A group (a task's leaves, or the batch for reinforce++) with fewer than two
    scored leaves, or with equal rewards, teaches nothing: all its advantages are 0. The standard deviation is the
    population's, with the weights of `weighting` (TRL and verl divide by n - 1, which scales all advantages of a group
    by sqrt((n - 1) / n)).

    Raises ConfigError if leave-one-out by root meets a tree with a single root, and ValueError for a score that is not
    finite or belongs to a leaf that the policy did not finish.
    """
    for scored in trees:
        _check(scored, config)
    if config.estimator == "reinforce++":
        keys = [(index, leaf) for index, scored in enumerate(trees) for leaf in sorted(scored.scores)]
        rewards = [trees[index].scores[leaf].reward for index, leaf in keys]
        batch = _advantages(rewards, [(index, leaf[0]) for index, leaf in keys], config)
        advantages: list[dict[Place, float]] = [{} for _ in trees]
        for (index, leaf), advantage in zip(keys, batch, strict=True):
            advantages[index][leaf] = advantage
    else:
        advantages = [_group_advantages(scored, config) for scored in trees]
    return [
        CreditedTree(scored, by_leaf, attribute(by_leaf, config.blend))
        for scored, by_leaf in zip(trees, advantages, strict=True)
    ]


def mixed(scored: ScoredTree) -> bool:
    """True if a group can teach something: at least two scored leaves whose rewards differ (DAPO's dynamic
    sampling)."""
    return len({score.reward for score in scored.scores.values()}) > 1


def attribute(advantages: Mapping[Place, float], blend: float) -> dict[tuple[Place, Place], float]:
    """`A(s, i) = a * mean_s + (1 - a) * A_i` for every turn s on the path of every leaf i, where `mean_s` is the mean
    advantage of the leaves below s."""
    total: dict[Place, float] = defaultdict(float)
    count: Counter[Place] = Counter()
    for leaf in sorted(advantages):
        for depth in range(1, len(leaf) + 1):
            total[leaf[:depth]] += advantages[leaf]
            count[leaf[:depth]] += 1
    credit: dict[tuple[Place, Place], float] = {}
    for leaf in sorted(advantages):
        for depth in range(1, len(leaf) + 1):
            turn, advantage = leaf[:depth], advantages[leaf]
            unmixed = count[turn] == 1 or not blend  # skip the arithmetic: both forms then agree to the last bit
            credit[turn, leaf] = advantage if unmixed else blend * (total[turn] / count[turn]) + (1 - blend) * advantage
    return credit


def _check(scored: ScoredTree, config: AdvantageConfig) -> None:
    for leaf, score in scored.scores.items():
        if leaf not in scored.tree.endings or scored.tree.endings[leaf].aborted:
            raise ValueError(
                f"task {scored.tree.task}: {show(leaf)} has a score but is not a leaf that the policy finished"
            )
        if not math.isfinite(score.reward):
            raise ValueError(f"task {scored.tree.task}: the reward of {show(leaf)} is {score.reward}")
    if (
        config.estimator == "rloo"
        and config.weighting == "tree"
        and len({leaf[0] for leaf in scored.tree.endings}) == 1
    ):
        raise ConfigError(
            f"leave-one-out by root needs at least two roots, and the tree of task {scored.tree.task} has a "
            "single root",
            where="advantage.weighting",
            value=config.weighting,
            hint="use weighting 'leaves', another estimator, or at least two roots",
        )


def _group_advantages(scored: ScoredTree, config: AdvantageConfig) -> dict[Place, float]:
    leaves = sorted(scored.scores)
    rewards = [scored.scores[leaf].reward for leaf in leaves]
    return dict(zip(leaves, _advantages(rewards, [leaf[0] for leaf in leaves], config), strict=True))


def _advantages(rewards: Sequence[float], roots: Sequence[object], config: AdvantageConfig) -> list[float]:
    """Advantages of one group, from the reward and the root of every leaf."""
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    blocks: Sequence[object] = (
        roots if config.weighting == "tree" else range(len(rewards))
    )  # one block is one observation
    if config.estimator == "rloo":
        return _leave_one_out(rewards, blocks)
    sizes = Counter(blocks)
    weights = [1 / (len(sizes) * sizes[block]) for block in blocks]
    mean = math.fsum(w * r for w, r in zip(weights, rewards, strict=True))
    centred = [r - mean for r in rewards]
    if config.estimator == "dr_grpo":
        return centred
    std = math.sqrt(math.fsum(w * c * c for w, c in zip(weights, centred, strict=True)))
    return [c / (std + config.eps) for c in centred]


def _leave_one_out(rewards: Sequence[float], blocks: Sequence[object]) -> list[float]:
    """Each reward minus the mean over all other blocks. A block counts once, however many leaves it has."""
    members: dict[object, list[float]] = defaultdict(list)
    for reward, block in zip(rewards, blocks, strict=True):
        members[block].append(reward)
    if len(members) == 1:  # failures aborted every other root: there is nothing to compare with
        return [0.0] * len(rewards)
    means = {block: math.fsum(values) / len(values) for block, values in members.items()}
    total = math.fsum(means.values())
    return [reward - (total - means[block]) / (len(means) - 1) for reward, block in zip(rewards, blocks, strict=True)]
