"""The learner: packs in, one optimizer update out.

Knows the model, the loss and the optimizer. Refuses to know rollouts, engines and files. Built on Accelerate, which places the
model and reduces over ranks.
"""

from __future__ import annotations

import copy
import math
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arpo.core.credit import CreditedTree
from arpo.core.place import Place
from arpo.errors import ConfigError
from arpo.learner.attention import layout_of, model_inputs, supports_tree, tree_attention
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.interrupt import Stopped, stoppable
from arpo.learner.logprobs import Head, token_logprobs
from arpo.learner.lora import full_state, is_finite
from arpo.learner.losses import LossReport, loss_denominator, metrics, policy_loss
from arpo.learner.malloc_trim import give_back, keep_freed
from arpo.learner.packing import PackedBatch, pack

Packing = Literal["auto", "tree", "flat"]
BAD_UPDATES = 3  # in a row that were skipped, then whoever asks for them stops


class Policy(nn.Module):
    """A causal language model as a function of packs: (log-probability, entropy) of the policy's tokens, [P] each."""

    def __init__(self, model: Any, *, tree: bool, temperature: float = 1.0, entropy_grad: bool = False) -> None:
        super().__init__()
        self.model, self.tree, self.temperature, self.entropy_grad = model, tree, temperature, entropy_grad

    @property
    def plain(self) -> Any:
        """The transformers model, LoRA's wrapper taken off."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def attention(self) -> AbstractContextManager[None]:
        """Attention by tree for forwards and backwards inside; nothing where training is flat."""
        return tree_attention(self.plain) if self.tree else nullcontext()

    def forward(self, batch: PackedBatch, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities at `temperature` (None: the recipe's), entropies at 1."""
        layout = layout_of(batch) if self.tree else None
        hidden_TH = self.plain.get_decoder()(**model_inputs(batch, layout)).last_hidden_state[0]
        return token_logprobs(
            batch.predicting(hidden_TH),
            batch.targets_P,
            Head.of(self.plain),
            temperature=temperature or self.temperature,
            entropy_grad=self.entropy_grad,
        )


def trains_by_tree(model_config: Any, packing: Packing) -> tuple[bool, str | None]:
    """Whether to train tree-packed, and why not where that was left open. Raises ConfigError where `tree` is asked in vain."""
    reason = supports_tree(model_config)
    if packing == "tree" and reason:
        raise ConfigError(
            f"this model cannot be trained tree-packed: {reason}", where="train.packing", value=packing, hint="use flat or auto"
        )
    return packing != "flat" and reason is None, reason if packing == "auto" else None


class Learner:
    """Trains `model` in place. `num_updates` is the length of the schedule.

    `reference` is what the policy is kept close to; None: the model as it is now. It is not looked at where `loss` asks for no
    divergence: then nothing is kept.
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: LossConfig,
        optim: OptimConfig,
        num_updates: int,
        token_budget: int,
        tree: bool,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
        reference: Any = None,
    ) -> None:
        self.loss, self.optim, self.num_updates, self.token_budget, self.dtype = loss, optim, num_updates, token_budget, dtype
        keep_freed()
        # Precision is autocast's below: Accelerate's own is a setting of the process, which two runs in one could not both have.
        self.accelerator = Accelerator(mixed_precision="no", cpu=model.device.type == "cpu")
        policy = Policy(model, tree=tree, temperature=temperature, entropy_grad=loss.entropy_coefficient > 0)
        self.reference = _frozen(policy, reference) if loss.kl_coefficient else None
        parameters = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.updates = 0
        self.seen: dict[str, dict[Place, array[float]]] = {}

    @property
    def unwrapped(self) -> Policy:
        return self.accelerator.unwrap_model(self.policy)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def state(self) -> dict[str, Tensor]:
        """Full weights under the plain model's names, LoRA merged, on the model's device; what an engine loads."""
        return full_state(self.unwrapped.model)

    def broken(self) -> str | None:
        """The name of a trained weight that holds NaN or infinity, if one does."""
        return next((name for name, p in self.unwrapped.model.named_parameters() if p.requires_grad and not is_finite(p)), None)

    def packs(self, trees: Sequence[CreditedTree]) -> list[PackedBatch]:
        return [p.to(self.device) for p in pack(trees, self.token_budget, flat=not self.unwrapped.tree)]

    def update(self, trees: Sequence[CreditedTree], updates: int = 1) -> dict[str, float]:
        """`updates` optimizer steps on disjoint mini-batches of whole trees, each token trained once; fewer where fewer trees can
        teach anything. Returns metrics; none where none can. The learning rate's schedule moves on by `updates` either way.

        Trees without any credit other than 0 count in the mean but are not computed, since their gradient is 0 (under a divergence
        or an entropy bonus it is not, so they are). An update whose loss or gradient is not finite is skipped and counted under
        `skipped_updates`.

        Afterwards `seen` holds, by task and turn, the log-probability (nats, float32) of each token that was computed, by the
        weights at the start of the step.
        """
        self.seen = {}
        scored = [tree for tree in trees if tree.advantages]
        all_teach = self.loss.kl_coefficient or self.loss.entropy_coefficient
        teaching = [tree for tree in scored if all_teach or any(tree.credit.values())]
        parts = _split(teaching, updates)
        self.updates += updates - len(parts)  # the schedule moves on by what was planned
        if not parts:
            return {}
        rows, tokens = ((a - b) / len(parts) for a, b in zip(_size(scored), _size(teaching), strict=True))  # silent, a part
        sizes = [loss_denominator(own_rows + rows, own_tokens + tokens, self.loss) for own_rows, own_tokens in map(_size, parts)]
        batches = [self.packs(part) for part in parts]
        if self.loss.entropy_advantage:
            batches = _weighed_by_entropy(batches, self.loss.entropy_advantage)
        # The first update's old log-probabilities are its own; later ones need them from before the weights moved.
        with self._autocast():
            before = [None, *([self.logprobs(p) for p in packs] for packs in batches[1:])]
        done = [self._one_update(*part) for part in zip(batches, before, sizes, strict=True)]
        for part, packs, (reports, _) in zip(parts, batches, done, strict=True):
            self._note_logprobs(part, packs, reports)
        figures = metrics([report for reports, _ in done for report in reports], self.loss)
        packs = [p for part in batches for p in part]
        return {
            **figures,
            "loss": figures["loss"] / len(done),
            "lr": done[-1][1]["lr"],
            "grad_norm": sum(step["grad_norm"] for _, step in done) / len(done),
            "skipped_updates": sum(step["skipped_updates"] for _, step in done),
            "updates": float(len(done)),
            "tokens_trained": float(sum(p.num_unique for p in packs)),
            "tokens_flat": float(sum(p.num_flat for p in packs)),
        }

    def imitate(self, trees: Sequence[CreditedTree], stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """One supervised update: mean negative log-probability (at temperature 1) of the trees' turns. Where `stop`, asked at
        each layer, is true, nothing is updated, and there are no metrics."""
        packs = self.packs(trees)
        total = sum(p.num_policy for p in packs)
        summed = 0.0
        with self.unwrapped.attention(), self._autocast():
            for batch in packs:
                try:
                    with stoppable(self.unwrapped.plain.get_decoder(), stop):
                        logprob_P, _ = self.policy(batch, temperature=1.0)
                        loss = -batch.rows(logprob_P).sum() / total
                        self.accelerator.backward(loss)
                except Stopped:
                    self.optimizer.zero_grad(set_to_none=True)
                    return {}
                summed += loss.item()
        return {"loss": summed, **self._step(math.isfinite(summed)), "tokens_trained": float(sum(p.num_unique for p in packs))}

    def time_pass(self, trees: Sequence[CreditedTree]) -> float:
        """Seconds of a forward and a backward over `trees`. Nothing changes."""
        packs = self.packs(trees)
        began = time.perf_counter()
        with self.unwrapped.attention(), self._autocast():
            for batch in packs:
                loss = -batch.rows(self.policy(batch)[0]).sum()
                self.accelerator.backward(loss)
                loss.item()  # waits for a GPU
        seconds = time.perf_counter() - began
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch) -> Tensor:
        """[B, L] of the current weights, without gradient."""
        with self.unwrapped.attention(), self._autocast():
            return batch.rows(self.policy(batch)[0])

    def _one_update(
        self, packs: Sequence[PackedBatch], old: Sequence[Tensor] | None, size: float
    ) -> tuple[list[LossReport], dict[str, float]]:
        """`size` normalises the loss over all packs."""
        reports: list[LossReport] = []
        # The backward inside attention, for checkpointing runs forwards there; one autocast, which then casts each weight once.
        with self.unwrapped.attention(), self._autocast():
            for number, batch in enumerate(packs):
                reference_BL = self._reference_logprobs(batch)
                logprob_P, entropy_P = self.policy(batch)
                loss, report = policy_loss(
                    batch.rows(logprob_P),
                    old[number] if old else None,
                    batch.engine_logprob_BL,
                    batch.advantage_BL,
                    batch.row_mask_BL,
                    self.loss,
                    denominator=size,
                    reference_logprob_BL=reference_BL,
                    entropy_BL=batch.rows(entropy_P),
                )
                self.accelerator.backward(loss)
                reports.append(report)
        return reports, self._step(math.isfinite(sum(report.loss for report in reports)))

    def _note_logprobs(self, part: Sequence[CreditedTree], packs: Sequence[PackedBatch], reports: Sequence[LossReport]) -> None:
        """Rows back to turns: a row holds the tokens of its path's turns in order. `mismatch` is learner minus engine."""
        for batch, report in zip(packs, reports, strict=True):
            mask_BL = batch.row_mask_BL
            own_BL = torch.zeros_like(batch.engine_logprob_BL)
            own_BL[mask_BL] = batch.engine_logprob_BL[mask_BL] + report.tokens["mismatch"].to(own_BL)
            for (number, leaf), values in zip(batch.leaves, own_BL.tolist(), strict=True):
                tree = part[number].tree
                turns, start = self.seen.setdefault(tree.task, {}), 0
                for place in (leaf[:depth] for depth in range(1, len(leaf) + 1)):
                    end = start + len(tree.turns[place].tokens)
                    turns[place] = array("f", values[start:end])
                    start = end

    @torch.no_grad()
    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with self.reference.attention(), self._autocast():
            return batch.rows(self.reference(batch)[0])

    def _autocast(self) -> AbstractContextManager[None]:
        """Matrix products in the recipe's precision."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype is torch.bfloat16 else nullcontext()

    def _step(self, finite: bool) -> dict[str, float]:
        lr = self.optim.rate(self.updates, self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        limit = math.inf if self.optim.grad_clip is None else self.optim.grad_clip
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), limit))
        skipped = not (finite and math.isfinite(norm))
        if not skipped:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        give_back()
        self.updates += 1
        return {"lr": lr, "grad_norm": norm, "skipped_updates": float(skipped)}


def _frozen(policy: Policy, model: Any) -> Policy:
    """`model`, or without one a copy of the policy's."""
    kept = (copy.deepcopy(policy.model) if model is None else model).requires_grad_(False).eval()
    return Policy(kept, tree=policy.tree, temperature=policy.temperature)


def _weighed_by_entropy(batches: Sequence[Sequence[PackedBatch]], weight: float) -> list[list[PackedBatch]]:
    """With AEPO's entropy-aware advantages `A (1 + a z(H))` (arXiv 2510.14545): H is the engine's entropy of a token, z its
    distance from the mean over the tokens of all rows, in (population) standard deviations."""
    entropy_N = torch.cat([p.entropy_BL[p.row_mask_BL] for part in batches for p in part]).double()
    mean, std = float(entropy_N.mean()), float(entropy_N.std(correction=0))
    if not std:
        return [list(part) for part in batches]

    def weighed(p: PackedBatch) -> PackedBatch:
        return replace(p, advantage_BL=p.advantage_BL * (1 + weight * (p.entropy_BL - mean) / std))

    return [[weighed(p) for p in part] for part in batches]


def _size(trees: Sequence[CreditedTree]) -> tuple[int, int]:
    """Rows and, over all rows, policy tokens."""
    rows = sum(len(tree.advantages) for tree in trees)
    return rows, sum(len(tree.tree.turns[place].tokens) for tree in trees for place, _ in tree.credit)


def _split(trees: Sequence[CreditedTree], parts: int) -> list[list[CreditedTree]]:
    """At most `parts` disjoint, non-empty portions of nearly equal length, in order."""
    parts = min(parts, len(trees))
    edges = [round(i * len(trees) / parts) for i in range(parts + 1)] if parts else []
    return [list(trees[a:b]) for a, b in pairwise(edges)]
