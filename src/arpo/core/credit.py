"""Turns the rewards of leaves into the credit of turns (docs/method.md, sections 5 and 6).

Knows rewards and which leaves share which turns. Refuses to know tokens, losses and what a reward means.
"""

import inspect
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from arpo.core.estimators import ESTIMATORS, MASKS, OVER_STEP, Mask, differ, turns_of
from arpo.core.place import Place, show
from arpo.core.score import Score
from arpo.core.tree import RolloutTree
from arpo.errors import ConfigError

Estimator = Literal[
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce++",
    "reinforce++-baseline",
    "opo",
    "maxrl",
    "gdpo",
    "tree_grpo",
    "sibling",
    "gigpo",
    "subtree",
    "returns",
    "empg",
]
MaskName = Literal["high_entropy", "overlong", "clip_cov"]
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
    mask: Mask = field(default_factory=dict)  # which tokens enter the loss; a pair that is missing enters whole

    @property
    def tree(self) -> RolloutTree:
        return self.scored.tree


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageConfig:
    """How rewards become advantages, and how the leaves below a shared turn divide its credit."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    estimator: Estimator = "grpo"
    """grpo: (R - mean) / (std + eps) over the task's leaves; dr_grpo: without std; rloo: R - mean of the other leaves;
    reinforce++: (R - mean) / (std + eps) over the whole batch; others: [method.md](method.md#5-rewards-and-advantages).
    With options: `{use: gigpo, options: {weight: 0.5}}`. `use` may be the import path of a function of your own,
    `(trees, config, **options)` to the credit by (turn, leaf) of each tree."""
    mask: MaskName | None = None
    """Which tokens enter the loss: high_entropy, the fifth with the highest entropy; overlong, none of a leaf that a
    limit cut off; clip_cov, all but a few whose probability and advantage covary; or, as for `estimator`, options and a
    function of your own to `{(turn, leaf): [bool by token]}` of each tree. Null: all."""
    weighting: Weighting = "leaves"
    """leaves: every leaf has the same weight in mean and std; tree: every root has the same weight, which its leaves
    share equally (a fill is a root too)."""
    blend: float = 0.0
    """a: 0 gives every turn its leaf's own advantage (the paper's soft form), 1 the mean over the leaves below the turn
    (the hard form)."""
    eps: float = 1e-6
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        for name, value, names in (("estimator", self.estimator, Estimator), ("mask", self.mask, MaskName)):
            if isinstance(value, str) and value not in get_args(names):
                raise ValueError(f"{name} must be one of {', '.join(get_args(names))} (got {value!r})")
        if self.weighting not in ("leaves", "tree"):
            raise ValueError(f"weighting must be leaves or tree (got {self.weighting!r})")
        if self.weighting == "tree" and self.name in ESTIMATORS:
            raise ValueError(f"weighting must be leaves with the estimator {self.name} (got {self.weighting!r})")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must be from 0 to 1 (got {self.blend!r})")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be at least 0 and finite (got {self.eps!r})")

    @property
    def name(self) -> str | None:
        """Of the built-in estimator; None for one of your own."""
        use = self.estimator if isinstance(self.estimator, str) else getattr(self.estimator, "use", None)
        return use if use in get_args(Estimator) else None


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
    rows = _built(config.estimator, ESTIMATORS, _leaf_credit)(trees, config)
    mask_of = _built(config.mask, MASKS, _no_mask)
    more = {"credit": rows} if "credit" in inspect.signature(mask_of).parameters else {}
    masks = mask_of(trees, config, **more)
    if len(rows) != len(trees) or len(masks) != len(trees):
        raise ConfigError(
            f"returned {len(rows)} credits and {len(masks)} masks for {len(trees)} trees", where="advantage"
        )
    credited = []
    for scored, credit_of, mask in zip(trees, rows, masks, strict=True):
        _check_returned(scored, credit_of, mask)
        advantages = {leaf: math.fsum(credit_of[t, leaf] for t in turns_of(leaf)) / len(leaf) for leaf in scored.scores}
        if _same_along_paths(credit_of):
            advantages = {leaf: credit_of[leaf, leaf] for leaf in sorted(scored.scores)}
        credited.append(CreditedTree(scored, advantages, blended(credit_of, config.blend), mask))
    return credited


def mixed(scored: ScoredTree) -> bool:
    """True if a group has something to compare: leaves whose rewards, or the rewards of whose turns or parts, differ
    by more than rounding (DAPO's dynamic sampling)."""
    scores = [*scored.scores.values()]
    columns = [[score.reward for score in scores]]
    columns += [[sum(score.turns) for score in scores]]
    return any(map(differ, columns)) or any(differ(score.turns) for score in scores)


def teaches(scored: ScoredTree, config: AdvantageConfig) -> bool:
    """Whether the estimator can give this group credit: one that compares tasks, or sees the parts of a score, needs no
    mixed rewards."""
    if config.name in OVER_STEP:
        return bool(scored.scores)
    if config.name == "gdpo":
        names = {name for score in scored.scores.values() for name in score.parts}
        return any(differ(score.parts.get(name, 0.0) for score in scored.scores.values()) for name in names)
    return mixed(scored) or (config.name is None and bool(scored.scores))


def _built(value: Any, names: Mapping[str, Any], default: Any) -> Any:
    """The function that an estimator's or mask's setting means."""
    if isinstance(value, str) or value is None:
        return names.get(value or "", default)
    return getattr(value, "built", value)


def _leaf_credit(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[dict[tuple[Place, Place], float]]:
    """Advantages by leaf, which all turns of its path have."""
    if config.estimator == "reinforce++":
        keys = [(index, leaf) for index, scored in enumerate(trees) for leaf in sorted(scored.scores)]
        rewards = [trees[index].scores[leaf].reward for index, leaf in keys]
        batch = _advantages(rewards, [(index, leaf[0]) for index, leaf in keys], config)
        advantages: list[dict[Place, float]] = [{} for _ in trees]
        for (index, leaf), advantage in zip(keys, batch, strict=True):
            advantages[index][leaf] = advantage
    else:
        advantages = [_group_advantages(scored, config) for scored in trees]
    return [{(turn, leaf): a for leaf, a in by_leaf.items() for turn in turns_of(leaf)} for by_leaf in advantages]


def _no_mask(trees: Sequence[ScoredTree], config: AdvantageConfig) -> list[Mask]:
    return [{} for _ in trees]


def _check_returned(scored: ScoredTree, credit_of: Mapping[tuple[Place, Place], float], mask: Mask) -> None:
    """Raises ConfigError unless every (turn, scored leaf) pair has finite credit and every mask fits its turn."""
    pairs = {(turn, leaf) for leaf in scored.scores for turn in turns_of(leaf)}
    for where, keys, whole in (("estimator", set(credit_of), True), ("mask", set(mask), False)):
        if wrong := sorted((keys ^ pairs) if whole else keys - pairs):
            turn, leaf = wrong[0]
            has = "an unknown" if wrong[0] in keys else "no"
            raise ConfigError(
                f"returned {has} pair (turn {show(turn)}, leaf {show(leaf)}) for task {scored.tree.task}",
                where=f"advantage.{where}",
                hint="It covers each turn on the path of each leaf with a score",
            )
    for (turn, leaf), value in credit_of.items():
        if not math.isfinite(value):
            message = f"returned {value} for turn {show(turn)} and leaf {show(leaf)} of task {scored.tree.task}"
            raise ConfigError(message, where="advantage.estimator")
    for (turn, _), values in mask.items():
        if len(values) != (length := len(scored.tree.turns[turn].tokens)):
            message = f"returned {len(values)} values for turn {show(turn)} of {length} tokens, task {scored.tree.task}"
            raise ConfigError(message, where="advantage.mask")


def _same_along_paths(credit_of: Mapping[tuple[Place, Place], float]) -> bool:
    return all(value == credit_of[leaf, leaf] for (_, leaf), value in credit_of.items())


def blended(credit_of: Mapping[tuple[Place, Place], float], blend: float) -> dict[tuple[Place, Place], float]:
    """`a * mean over the leaves below s of A(s, j) + (1 - a) * A(s, i)` for every (turn s, leaf i)."""
    if not blend:
        return dict(credit_of)
    below: dict[Place, list[float]] = defaultdict(list)
    for (turn, _), value in credit_of.items():
        below[turn].append(value)
    return {
        (turn, leaf): value
        if len(below[turn]) == 1
        else blend * math.fsum(below[turn]) / len(below[turn]) + (1 - blend) * value
        for (turn, leaf), value in credit_of.items()
    }


def attribute(advantages: Mapping[Place, float], blend: float) -> dict[tuple[Place, Place], float]:
    """`A(s, i) = a * mean_s + (1 - a) * A_i` for every turn s on the path of every leaf i, where `mean_s` is the mean
    advantage of the leaves below s."""
    return blended({(turn, leaf): a for leaf, a in sorted(advantages.items()) for turn in turns_of(leaf)}, blend)


def _check(scored: ScoredTree, config: AdvantageConfig) -> None:
    for leaf, score in scored.scores.items():
        if leaf not in scored.tree.endings or scored.tree.endings[leaf].aborted:
            raise ValueError(
                f"task {scored.tree.task}: {show(leaf)} has a score but is not a leaf that the policy finished"
            )
        if not math.isfinite(score.reward):
            raise ValueError(f"task {scored.tree.task}: the reward of {show(leaf)} is {score.reward}")
        if score.turns and (len(score.turns) != len(leaf) or not all(map(math.isfinite, score.turns))):
            raise ValueError(
                f"task {scored.tree.task}: {show(leaf)} has {len(leaf)} turns and needs as many finite rewards in "
                f"Score.turns, or none (got {score.turns})"
            )
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
    if not differ(rewards):
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
