"""The driver's half of the learner: it has all trees of an update, so it packs, counts and deals, and reads the ranks'
reports.

A mini-batch's denominator, means and schedule are over all ranks, since they are counted here. Knows trees, packs and
the learning rate's schedule. Refuses to know models, optimizers and devices (`arpo.learner.rank`), and how ranks are
reached (`arpo.learner.ranks`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import fsum
from pathlib import Path

import torch
from torch import Tensor

from arpo.core.credit import CreditedTree
from arpo.core.place import Place
from arpo.learner import Update
from arpo.learner.config import EntropyTarget, LossConfig
from arpo.learner.dealing import deal
from arpo.learner.lora import LoraWeights
from arpo.learner.losses import Coefficients, LossReport, first_coefficients, loss_denominator, metrics
from arpo.learner.packing import PackedBatch, pack
from arpo.learner.rank import Done, MiniBatch, RankSettings
from arpo.learner.ranks import Ranks
from arpo.learner.sharding import device_of_rank

Dealt = Sequence[Sequence[PackedBatch]]
"""Packs by rank, as many for each."""


class GatheredWeights(Mapping[str, "Tensor"]):
    """The weights of several ranks by name. A look-up gathers the tensor, and this keeps none. `shapes`: the same
    without memory (on torch's meta device), for names, types and shapes alone."""

    def __init__(self, ranks: Ranks, shapes: Mapping[str, Tensor]) -> None:
        self.ranks, self.shapes = ranks, shapes

    @property
    def device(self) -> torch.device:
        """Where a look-up gathers a tensor."""
        return device_of_rank() if self.ranks.here else torch.device("cpu")

    @classmethod
    def from_ranks(cls, ranks: Ranks) -> GatheredWeights:
        """The weights as they are now."""
        return cls(ranks, ranks.call("weights")[0])

    def write(self, folder: Path, dtype: torch.dtype | None = None, *, unties: bool = False) -> None:
        """Write them to safetensors in `folder`, under a checkpoint's names and in `dtype` (None: as they are). Each
        rank writes its own rows, and none is gathered. `unties`: a tied head is written once more."""
        self.ranks.call("write_weights", folder, dtype, unties)

    def __getitem__(self, name: str) -> Tensor:
        return self.gathered(name, self.shapes[name].dtype)

    def gathered(self, name: str, dtype: torch.dtype) -> Tensor:
        """A weight, gathered in `dtype`."""
        tensor: Tensor = self.ranks.call("weight", name, dtype)[0]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def weights_of(ranks: Ranks) -> Mapping[str, Tensor]:
    """The weights that `ranks` hold, as an engine takes them (`Weights.state`)."""
    merge: Callable[[], Mapping[str, Tensor]]
    merge = partial(GatheredWeights.from_ranks, ranks) if ranks.size > 1 else lambda: ranks.call("weights")[0]
    return LoraWeights(merge, partial(ranks.call, "save_model")) if ranks.call("adapted")[0] else merge()


class LearnerDriver:
    """Trains the policy that `ranks` hold; see `arpo.learner.Learner`. `num_updates` is the length of the learning
    rate's schedule."""

    def __init__(self, ranks: Ranks, settings: RankSettings, *, num_updates: int, token_budget: int) -> None:
        self.ranks, self.settings, self.num_updates, self.token_budget = ranks, settings, num_updates, token_budget
        self.pair_cost: float = ranks.call("pair_cost")[0] if ranks.size > 1 else 0.0
        self.updates = 0

    @property
    def loss(self) -> LossConfig:
        return self.settings.loss

    def weights(self) -> Mapping[str, Tensor]:
        """All weights under the names of the transformers model, LoRA merged (`LoraWeights`). Those of several ranks
        are gathered one by one, as they are looked up."""
        return weights_of(self.ranks)

    def healthy(self) -> str | None:
        """None where all trained weights are finite, else the name of one that is not."""
        return next(filter(None, self.ranks.call("healthy")), None)

    def snapshot(self) -> Callable[[Path], None]:
        """Copy weights and optimizer to main memory. What this returns writes the copy to a folder, once, from any
        thread: `folder/model` (with LoRA the adapters alone), optimizer.safetensors and optimizer.json."""
        self.ranks.call("copy", self.updates)

        def write(folder: Path) -> None:
            self.ranks.call("write_copy", folder, background=True)

        return write

    def load(self, folder: Path) -> None:
        """Take up the optimizer's state and the number of updates. Raises CheckpointError where they are another
        model's."""
        self.updates = self.ranks.call("load", folder)[0]

    def deal(self, trees: Sequence[CreditedTree]) -> list[list[PackedBatch]]:
        """`trees` as packs of at most `token_budget` tokens, by rank."""
        flat, whole = not self.settings.tree, self.loss.whole_rows
        if self.ranks.size == 1:
            return [pack(trees, self.token_budget, flat=flat, whole=whole)]
        size, cost = self.ranks.size, self.pair_cost
        return deal(trees, self.token_budget, size, pair_cost=cost, flat=flat, whole=whole)

    def update(self, trees: Sequence[CreditedTree], updates: int = 1, *, seed: int | None = None) -> Update:
        """Take `updates` optimizer steps on disjoint mini-batches of whole trees, so that each token is trained on
        once; fewer where fewer trees can teach anything. The learning rate's schedule moves on by `updates` either way.

        Trees whose credit is 0 everywhere count in the mean but are not computed, since their gradient is 0 (under a
        divergence or an entropy bonus it is not, and they are computed). An update whose loss or gradient is not finite
        changes no weight and counts in `skipped_updates`.
        """
        scored = [tree for tree in trees if tree.advantages]
        all_teach = self.loss.divergence or self.loss.entropy_coefficient
        teaching = [tree for tree in scored if all_teach or any(tree.credit.values())]
        parts = _split(teaching, updates)
        self.updates += updates - len(parts)  # the schedule moves on by what was planned
        if not parts:
            return Update(metrics={}, logprobs={})
        rows, tokens = (
            (a - b) / len(parts) for a, b in zip(_size(scored), _size(teaching), strict=True)
        )  # silent, per part
        dealt = [self.deal(part) for part in parts]
        if self.loss.entropy_advantage:
            dealt = _weighed_by_entropy(dealt, self.loss.entropy_advantage)
        batches = [
            [
                MiniBatch(
                    packs,
                    loss_denominator(part_rows + rows, part_tokens + tokens, self.loss),
                    self.settings.optim.rate(self.updates + number, self.num_updates),
                    self.coefficients(self.updates + number, scored),
                )
                for packs in by_rank
            ]
            for number, (by_rank, (part_rows, part_tokens)) in enumerate(zip(dealt, map(_size, parts), strict=True))
        ]
        results: list[list[Done]] = self.ranks.call("update", seed, each=[(own,) for own in zip(*batches, strict=True)])
        self.updates += len(parts)
        done = [*zip(*results, strict=True)]
        logprobs: dict[str, dict[Place, array[float]]] = {}
        for part, by_rank, of_ranks in zip(parts, dealt, done, strict=True):
            for tree, place, values in _by_turn(part, by_rank, of_ranks):
                logprobs.setdefault(tree, {})[place] = values
        return Update(metrics=self._metrics(dealt, done, batches[-1][0]), logprobs=logprobs)

    def sft_step(self, trees: Sequence[CreditedTree], stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Take one optimizer step on the mean negative log-probability (nats, at temperature 1) of the trees' turns.
        Where `stop`, which is called at every layer (with several ranks: before every pack), returns True, no weight
        changes and there are no metrics."""
        dealt = self.deal(trees)
        packs = [p for own in dealt for p in own]
        lr = self.settings.optim.rate(self.updates, self.num_updates)
        stops = [stop if self.ranks.here else _never, *[_never] * (self.ranks.size - 1)]
        results = self.ranks.call("sft", sum(p.num_policy for p in packs), lr, each=[*zip(dealt, stops, strict=True)])
        if None in results:
            return {}
        self.updates += 1
        return {
            "loss": sum(loss for loss, _ in results),
            "lr": lr,
            "grad_norm": results[0][1].grad_norm,
            "skipped_updates": float(results[0][1].skipped),
            "tokens_trained": float(sum(p.num_unique for p in packs)),
        }

    def time_pass(self, trees: Sequence[CreditedTree]) -> float:
        """Seconds of a forward and a backward pass over `trees`. Changes nothing."""
        return max(self.ranks.call("time_pass", each=[(own,) for own in self.deal(trees)]))

    def coefficients(self, update: int, trees: Sequence[CreditedTree]) -> Coefficients:
        """Of divergence and entropy bonus at an update on `trees`."""
        kl, bonus = self.loss.divergence, self.loss.entropy_coefficient
        entropy = bonus.at(_mean_entropy(trees)) if isinstance(bonus, EntropyTarget) else bonus
        return Coefficients(kl.at(update, self.num_updates) if kl else 0.0, entropy)

    def _metrics(self, dealt: Sequence[Dealt], done: Sequence[Sequence[Done]], last: MiniBatch) -> dict[str, float]:
        now = last.coefficients or first_coefficients(self.loss)
        figures = metrics([report for ranks in done for one in ranks for report in one.reports], self.loss)
        packs = [p for by_rank in dealt for own in by_rank for p in own if p.leaves]
        return {
            **figures,
            "loss": figures["loss"] / len(done),
            "lr": last.lr,
            **({"kl_coefficient": now.kl} if self.loss.divergence else {}),
            **({"entropy_coefficient": now.entropy} if self.loss.entropy_coefficient else {}),
            "grad_norm": sum(ranks[0].grad_norm for ranks in done) / len(done),
            "skipped_updates": float(sum(ranks[0].skipped for ranks in done)),
            "updates": float(len(done)),
            "tokens_trained": float(sum(p.num_unique for p in packs)),
            "tokens_flat": float(sum(p.num_flat for p in packs)),
        }


def _never() -> bool:
    return False


def _by_turn(
    trees: Sequence[CreditedTree], dealt: Dealt, done: Sequence[Done]
) -> Iterator[tuple[str, Place, array[float]]]:
    """(task id, turn, the learner's log-probabilities of its tokens). `mismatch` is the learner's log-probability minus
    the engine's."""
    packs = [p for own in dealt for p in own if p.leaves]
    reports: list[LossReport] = [report for one in done for report in one.reports]
    for batch, report in zip(packs, reports, strict=True):
        mask_BL = batch.row_mask_BL
        logprob_BL = torch.zeros_like(batch.engine_logprob_BL)
        logprob_BL[mask_BL] = batch.engine_logprob_BL[mask_BL] + report.tokens["mismatch"].to(logprob_BL)
        for (number, _), turns, values in zip(batch.leaves, batch.turns, logprob_BL.tolist(), strict=True):
            tree, start = trees[number].tree, 0
            for place in turns:
                end = start + len(tree.turns[place].tokens)
                yield tree.task, place, array("f", values[start:end])
                start = end


def _weighed_by_entropy(batches: Sequence[Dealt], weight: float) -> list[list[list[PackedBatch]]]:
    """The packs with AEPO's entropy-aware advantages `A (1 + a z(H))` (arXiv 2510.14545): H is the engine's entropy at
    a token, z its distance from the mean over the tokens of all rows, in (population) standard deviations."""
    entropy_N = torch.cat([p.entropy_BL[p.row_mask_BL] for dealt in batches for own in dealt for p in own]).double()
    mean, std = float(entropy_N.mean()), float(entropy_N.std(correction=0))
    if not std:
        return [[list(own) for own in dealt] for dealt in batches]

    def weighed(p: PackedBatch) -> PackedBatch:
        return replace(p, advantage_BL=p.advantage_BL * (1 + weight * (p.entropy_BL - mean) / std))

    return [[[weighed(p) for p in own] for own in dealt] for dealt in batches]


def _mean_entropy(trees: Sequence[CreditedTree]) -> float:
    """By the engine, over the tokens of trained turns, each once; 0 where there is none."""
    turns = [tree.tree.turns[place] for tree in trees for place in {turn for turn, _ in tree.credit}]
    return fsum(map(fsum, (turn.entropies for turn in turns))) / max(sum(len(t.entropies) for t in turns), 1)


def _size(trees: Sequence[CreditedTree]) -> tuple[int, int]:
    """Rows and, over all rows, policy tokens."""
    rows = sum(len(tree.advantages) for tree in trees)
    return rows, sum(len(tree.tree.turns[place].tokens) for tree in trees for place, _ in tree.credit)


def _split(trees: Sequence[CreditedTree], parts: int) -> list[list[CreditedTree]]:
    """At most `parts` disjoint, non-empty portions of nearly equal length, in order."""
    parts = min(parts, len(trees))
    edges = [round(i * len(trees) / parts) for i in range(parts + 1)] if parts else []
    return [list(trees[a:b]) for a, b in pairwise(edges)]
