"""Whether two trainers compute the same loss: TRL's recorded completions given to our learner, both in float32 on the
same weights.

The old log-probabilities are those of the weights before a small random change, so that ratios and clipping play their
part: with r = 1 the value of the loss would say nothing about the log-probabilities. Advantages are drawn, the same for
both: rewards that happen to be alike would make every loss 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from arpo.core import CreditedTree, Observation, Place, Prompt, Role, RolloutTree, ScoredTree, Turn
from arpo.core.tree import Call, StopReason
from arpo.learner.config import LossConfig
from arpo.learner.local import LocalLearner
from arpo.learner.losses import policy_loss
from arpo.recipe.run import RunConfig

CHANGE = 4e-3  # standard deviation of what is added to every weight


def compare(trainer: Any, batch: dict[str, Any], run: RunConfig, groups: int) -> dict[str, float]:
    """Loss and gradient of both sides on `batch` (as TRL's loss takes it), for its first `groups` groups.

    `trainer`: one in float32 that has not trained; both sides look at its model, which is changed.
    """
    model, leaves = trainer.model, run.rollout.leaves
    config = LossConfig(aggregation="sequence", tis_cap=None, clip_low=run.loss.clip_low, clip_high=run.loss.clip_high)
    learner = LocalLearner(
        model,
        loss=config,
        optim=run.optim,
        num_updates=1,
        token_budget=run.train.token_budget,
        tree=True,
        dtype=torch.float32,
    )
    rows = {key: value[: groups * leaves] for key, value in batch.items() if key != "num_items_in_batch"}
    rows["advantages"] = torch.randn(len(rows["advantages"]), generator=torch.Generator().manual_seed(0))
    trees = as_trees(rows, leaves)
    packs = learner.packs(trees)
    old = [learner.rank.logprobs(pack) for pack in packs]
    width = rows["completion_ids"].size(1)
    with torch.no_grad():
        rows["old_per_token_logps"] = trainer._get_per_token_logps_and_entropies(model, *_inputs(rows), width)[0]
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=CHANGE)
    ours = 0.0
    for pack, before in zip(packs, old, strict=True):
        with learner.policy.attention():
            logprob_P, _ = learner.policy(pack)
            loss, _ = policy_loss(
                pack.rows(logprob_P),
                before,
                pack.engine_logprob_BL,
                pack.advantage_BL,
                pack.row_mask_BL,
                config,
                denominator=float(len(rows["completion_ids"])),
            )
            loss.backward()
        ours += float(loss.detach())
    own_gradient = _taken(model)
    theirs, parts = 0.0, range(0, len(rows["completion_ids"]), 8)
    trainer.current_gradient_accumulation_steps = len(parts)
    for start in parts:
        loss = trainer._compute_loss(model, {key: value[start : start + 8] for key, value in rows.items()})
        loss.backward()
        theirs += float(loss.detach())
    gradient = _taken(model)
    return {
        "trl": theirs,
        "arpo": ours,
        "loss_relative": abs(ours - theirs) / abs(theirs),
        "gradient_relative": float((own_gradient - gradient).norm() / gradient.norm()),
        "rows": float(len(rows["completion_ids"])),
    }


def _inputs(rows: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
        torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
    )


def _taken(model: Any) -> torch.Tensor:
    taken = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return taken


def as_trees(rows: dict[str, Any], leaves: int) -> list[CreditedTree]:
    """Rows of a batch, `leaves` a task, as trees of as many roots, with the batch's advantages."""
    advantages, found = rows["advantages"].tolist(), []
    for first in range(0, len(advantages), leaves):
        prompt = rows["prompt_ids"][first][rows["prompt_mask"][first].bool()].tolist()
        tree = RolloutTree(f"group-{first}", 0, Prompt(tokens=array("i", prompt)))
        credit: dict[tuple[Place, Place], float] = {}
        ends: dict[Place, float] = {}
        for root in range(leaves):
            row, advantage = first + root, advantages[first + root]
            kept = rows["completion_mask"][row].bool()
            wrote = rows["tool_mask"][row] if "tool_mask" in rows else rows["completion_mask"][row]
            leaf = _grow(tree, root, rows["completion_ids"][row][kept].tolist(), wrote[kept].tolist())
            ends[leaf] = advantage
            credit |= {(leaf[:depth], leaf): advantage for depth in range(1, len(leaf) + 1)}
        found.append(CreditedTree(ScoredTree(tree, {}), ends, credit))
    return found


def _grow(tree: RolloutTree, root: int, tokens: Sequence[int], wrote: Sequence[int]) -> Place:
    """One trajectory as a line of turns (`wrote` 1) and observations (0); results that nothing follows train
    nothing."""
    runs = [
        (mine, [token for token, _ in run])
        for mine, run in groupby(zip(tokens, wrote, strict=True), key=lambda pair: pair[1])
    ]
    runs = runs if runs[-1][0] else runs[:-1]
    place: Place = (root,)
    for number, (mine, part) in enumerate(runs):
        if not mine:
            tree.grow(Observation(place=place, tokens=array("i", part), outcomes=()))
            place = (*place, 0)
            continue
        zeros = array("f", bytes(4 * len(part)))
        tree.grow(
            Turn(
                place=place,
                role=Role.ROOT if len(place) == 1 else Role.PROBE,
                tokens=array("i", part),
                logprobs=zeros,
                entropies=zeros,
                versions=((0, len(part)),),
                calls=() if number == len(runs) - 1 else (Call(name="search"),),
            )
        )
    tree.end(place, StopReason.FINISHED)
    return place
