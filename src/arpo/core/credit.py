"""From rewards of leaves to credit of tokens (docs/method.md, sections 5 and 6).

Knows rewards and who shares what with whom. Refuses to know tokens, losses and what a reward means.
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
    """A tree with a score for every leaf that has one (leaves ended by the world have none)."""

    tree: RolloutTree
    scores: Mapping[Place, Score]


@dataclass(frozen=True, slots=True)
class CreditedTree:
    """A scored tree with the advantage of each scored leaf, and the credit of each (turn, leaf) pair on its path."""

    scored: ScoredTree
    advantages: Mapping[Place, float]  # A_i by leaf
    credit: Mapping[tuple[Place, Place], float]  # A(s, i) by (turn, leaf), eq. of section 6

    @property
    def tree(self) -> RolloutTree:
        return self.scored.tree


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageConfig:
    """How rewards become advantages, and how shared turns share them."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Estimator = "grpo"
    """grpo: (R - mean) / (std + eps) over the task's leaves; dr_grpo: without std; rloo: R - mean of the other leaves;
    reinforce++: (R - mean) / (std + eps) over the whole batch."""
    weighting: Weighting = "leaves"
    """leaves: every leaf counts alike in mean and std; tree: every root does, its leaves in equal parts (a fill is a root too)."""
    blend: float = 0.0
    """a: 0 gives a leaf's own advantage to all its turns (the paper's soft form), 1 the mean of the leaves below a turn (hard)."""
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

    Leaves without a score leave the group. A group (a task's leaves; the batch under reinforce++) with fewer than two scored leaves
    or with equal rewards gives nothing to learn: all zero. The standard deviation is the population's, with the weights of
    `weighting` (TRL and verl divide by n - 1, which scales all advantages of a group by sqrt((n - 1) / n)).

    Raises ConfigError where leave-one-out by root meets a tree of a single root, ValueError for a score that is not finite or whose
    leaf the policy did not finish.
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
        advantages = [_of_group(scored, config) for scored in trees]
    return [CreditedTree(scored, own, attribute(own, config.blend)) for scored, own in zip(trees, advantages, strict=True)]


def mixed(scored: ScoredTree) -> bool:
    """True where a group can teach something: at least two scored leaves, and not all rewards equal (DAPO's dynamic sampling)."""
    return len({score.reward for score in scored.scores.values()}) > 1


def attribute(advantages: Mapping[Place, float], blend: float) -> dict[tuple[Place, Place], float]:
    """`A(s, i) = a * mean_s + (1 - a) * A_i` for each turn s on the path of each leaf i; `mean_s` is over the leaves below s."""
    total: dict[Place, float] = defaultdict(float)
    count: Counter[Place] = Counter()
    for leaf in sorted(advantages):
        for depth in range(1, len(leaf) + 1):
            total[leaf[:depth]] += advantages[leaf]
            count[leaf[:depth]] += 1
    credit: dict[tuple[Place, Place], float] = {}
    for leaf in sorted(advantages):
        for depth in range(1, len(leaf) + 1):
            turn, own = leaf[:depth], advantages[leaf]
            alone = count[turn] == 1 or not blend  # no arithmetic where all forms agree: then they do so to the last bit
            credit[turn, leaf] = own if alone else blend * (total[turn] / count[turn]) + (1 - blend) * own
    return credit


def _check(scored: ScoredTree, config: AdvantageConfig) -> None:
    for leaf, score in scored.scores.items():
        if leaf not in scored.tree.endings or scored.tree.endings[leaf].by_world:
            raise ValueError(f"task {scored.tree.task}: {show(leaf)} has a score but is no leaf that the policy finished")
        if not math.isfinite(score.reward):
            raise ValueError(f"task {scored.tree.task}: the reward of {show(leaf)} is {score.reward}")
    if config.estimator == "rloo" and config.weighting == "tree" and len({leaf[0] for leaf in scored.tree.endings}) == 1:
        raise ConfigError(
            f"leave-one-out by root has nothing to compare with in task {scored.tree.task}, whose tree has a single root",
            where="advantage.weighting",
            value=config.weighting,
            hint="use weighting 'leaves', another estimator, or at least two roots",
        )


def _of_group(scored: ScoredTree, config: AdvantageConfig) -> dict[Place, float]:
    leaves = sorted(scored.scores)
    rewards = [scored.scores[leaf].reward for leaf in leaves]
    return dict(zip(leaves, _advantages(rewards, [leaf[0] for leaf in leaves], config), strict=True))


def _advantages(rewards: Sequence[float], roots: Sequence[object], config: AdvantageConfig) -> list[float]:
    """Advantages of one group: `rewards` by leaf, and the root that each leaf belongs to."""
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    blocks: Sequence[object] = roots if config.weighting == "tree" else range(len(rewards))  # what counts as one observation
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
    """Each reward less the mean over all other blocks, a block counting once however many leaves it has."""
    members: dict[object, list[float]] = defaultdict(list)
    for reward, block in zip(rewards, blocks, strict=True):
        members[block].append(reward)
    if len(members) == 1:  # the world ended every other root: nothing to compare with
        return [0.0] * len(rewards)
    means = {block: math.fsum(own) / len(own) for block, own in members.items()}
    total = math.fsum(means.values())
    return [reward - (total - means[block]) / (len(means) - 1) for reward, block in zip(rewards, blocks, strict=True)]
