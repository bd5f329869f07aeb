"""Each method of docs/method.md by the keys that stand there, against the loss that its paper writes, a trajectory at a
time."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
import yaml

import arpo
from arpo.core.credit import ScoredTree, credit, mixed
from arpo.core.score import Score
from arpo.core.tree import RolloutTree
from arpo.learner.losses import Objective, loss_denominator, policy_loss
from arpo.learner.packing import pack
from arpo.recipe.run import plain
from arpo.rollout.config import RolloutConfig
from random_trees import random_tree

PAGE = Path(__file__).parents[2] / "docs" / "method.md"
ROW = re.compile(r"^\| ([^|]+) \(\d{4}\.\d{5}\) \| ([^|]+) \|", re.MULTILINE)
METHODS = {name: re.findall(r"`([\w.]+: [^`]+)`", keys) for name, keys in ROW.findall(PAGE.read_text(encoding="utf-8"))}

Trajectory = tuple[float, list[float]]  # reward, ratios of its tokens
Group = list[Trajectory]


def run_of(keys: Sequence[str]) -> arpo.Run:
    """The recipe that a row of the table means."""
    recipe: dict[str, Any] = {"data": {"train": {}}, "loss": {"tis_cap": None}}
    for key in keys:
        ((name, value),) = yaml.safe_load(key).items()
        group, _, last = name.rpartition(".")
        recipe.setdefault(group or "loss", {})[last] = value
    return arpo.Run(**recipe)


# --- the papers' formulas


def grpo(groups: list[Group]) -> float:
    return fmean(fmean(fmean(clipped(r, A) for r in ratios) for A, ratios in grouped(group)) for group in groups)


def dapo(groups: list[Group]) -> float:
    kept = [group for group in groups if len({reward for reward, _ in group}) > 1]
    return fmean(clipped(r, A, high=0.28) for group in kept for A, ratios in grouped(group) for r in ratios)


def dr_grpo(groups: list[Group]) -> float:
    return fmean(
        fmean(sum(clipped(r, A) for r in ratios) / 4096 for A, ratios in grouped(g, std=False)) for g in groups
    )


def reinforce_plus_plus(groups: list[Group]) -> float:
    return fmean(clipped(r, A) for A, ratios in grouped([one for group in groups for one in group]) for r in ratios)


def gspo(groups: list[Group]) -> float:
    def ratio(ratios: list[float]) -> float:
        return math.prod(ratios) ** (1 / len(ratios))

    return fmean(fmean(clipped(ratio(ratios), A, 3e-4, 4e-4) for A, ratios in grouped(group)) for group in groups)


def cispo(groups: list[Group]) -> float:
    return fmean(min(r, 1.2) * A for group in groups for A, ratios in grouped(group) for r in ratios)


def aepo(groups: list[Group]) -> float:
    """test_losses.py and test_local_learner.py hold AEPO's gradients and advantages; the rest is GRPO's."""
    return grpo(groups)


PAPERS: dict[str, Callable[[list[Group]], float]] = {
    "GRPO": grpo,
    "DAPO": dapo,
    "Dr. GRPO": dr_grpo,
    "REINFORCE++": reinforce_plus_plus,
    "GSPO": gspo,
    "CISPO": cispo,
    "AEPO": aepo,
}


def clipped(ratio: float, advantage: float, low: float = 0.2, high: float = 0.2) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def grouped(group: Group, *, std: bool = True) -> list[tuple[float, list[float]]]:
    """(advantage, ratios) of each trajectory of a group."""
    rewards = [reward for reward, _ in group]
    spread = pstdev(rewards) if std else 1.0
    return [((reward - fmean(rewards)) / spread if spread else 0.0, ratios) for reward, ratios in group]


# --- ours


def scored(seed: int, rewards: Sequence[float]) -> ScoredTree:
    """A tree with one leaf for each reward."""
    tree = next(
        t
        for n in range(1000)
        if len((t := random_tree(100 * seed + n, roots=2, leaves=len(rewards)).tree).endings) == len(rewards)
    )
    tree.task = f"task-{seed}"
    scores = {leaf: Score(reward=reward, accuracy=0.0) for leaf, reward in zip(tree.leaves(), rewards, strict=True)}
    return ScoredTree(tree, scores)


def moved(tree: RolloutTree) -> dict[tuple[int, ...], list[float]]:
    """By turn, how far the learner's log-probabilities are from the engine's, which are the old ones here."""
    random = Random(tree.task)
    return {place: [random.gauss(0, 0.3) for _ in turn.tokens] for place, turn in sorted(tree.turns.items())}


def groups_of(trees: Sequence[ScoredTree]) -> list[Group]:
    found = []
    for tree in trees:
        shift, group = moved(tree.tree), []
        for leaf, score in tree.scores.items():
            path = [leaf[:depth] for depth in range(1, len(leaf) + 1)]
            group.append((score.reward, [math.exp(x) for place in path for x in shift[place]]))
        found.append(group)
    return found


def ours(run: arpo.Run, trees: Sequence[ScoredTree]) -> float:
    kept = [tree for tree in trees if run.train.dynamic_sampling is None or mixed(tree)]
    batches = pack(credit(kept, run.advantage), 10**6)
    size = loss_denominator(sum(len(b.leaves) for b in batches), sum(b.num_policy for b in batches), run.loss)
    total = 0.0
    for batch in batches:
        old_BL = batch.engine_logprob_BL.double()
        shift_BL = torch.zeros_like(old_BL)
        for row, (number, leaf) in enumerate(batch.leaves):
            shift = moved(kept[number].tree)
            values = [x for depth in range(1, len(leaf) + 1) for x in shift[leaf[:depth]]]
            shift_BL[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        loss, _ = policy_loss(
            old_BL + shift_BL,
            old_BL,
            old_BL,
            batch.advantage_BL.double(),
            batch.row_mask_BL,
            run.loss,
            denominator=size,
        )
        total -= float(loss)
    return total


def test_the_table_is_read_whole() -> None:
    elsewhere = {"SAPO", "DPPO", "GMPO", "AT2PO's loss"}  # a token at a time, in test_surrogates.py
    assert set(METHODS) == {*PAPERS, *elsewhere}
    assert METHODS["DAPO"] == ["aggregation: token", "clip_high: 0.28", "train.dynamic_sampling: 3"]
    aepo_rollout = run_of(METHODS["AEPO"]).rollout
    assert aepo_rollout == RolloutConfig(rule="aepo", roots="pilot")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", PAPERS)
def test_a_method_is_what_its_paper_writes(method: str, seed: int) -> None:
    """Over branched trees, one of whose groups teaches nothing; shared tokens count once a trajectory."""
    random = Random(seed)
    rewards = [[random.choice([-1.0, 0.0, 1.0]) for _ in range(4)], [1.0, 0.0, 0.0, -1.0], [1.0] * 4]
    trees = [scored(10 * seed + number, own) for number, own in enumerate(rewards)]
    assert any(len(leaf) > 1 for tree in trees for leaf in tree.scores), "nothing is shared"
    expected = PAPERS[method](groups_of(trees))
    assert ours(run_of(METHODS[method]), trees) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_divergence_is_k3_of_the_reference() -> None:
    """`p_ref / p - ln(p_ref / p) - 1`, taken from each token's value before the mean (GRPO, eq. 3 and 4)."""
    run = run_of(["kl_coefficient: 0.04"])
    logprob = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    reference, mask = torch.tensor([[-1.5, -1.0, -0.5]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    advantage = torch.tensor([[0.7, 0.7, 0.7]], dtype=torch.float64)
    loss, _ = policy_loss(
        logprob, None, logprob, advantage, mask, run.loss, denominator=1.0, reference_logprob_BL=reference
    )
    quotients = [math.exp(r - p) for r, p in zip(reference[0].tolist(), logprob[0].tolist(), strict=True)]
    assert float(loss) == pytest.approx(-fmean(0.7 - 0.04 * (q - math.log(q) - 1) for q in quotients))


def unclipped(log_ratio: Any, advantage: Any, mask: Any, config: Any) -> Objective:
    return Objective(log_ratio.exp() * advantage, {})


def test_a_run_made_in_python_names_its_surrogate() -> None:
    run = arpo.Run(data={"train": {}}, loss={"surrogate": unclipped})
    written = plain(run)
    assert written["loss"]["surrogate"] == f"{__name__}:unclipped" and Path(written["code"]) == Path(__file__).parent
    assert arpo.Run(**written).loss == run.loss
