"""The learner of one process and one device: packs in, optimizer steps out.

Knows the policy, the loss and the optimizer. Refuses to know rollouts and engines. Accelerate places the model.
"""

from __future__ import annotations

import copy
import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from arpo.core.credit import CreditedTree
from arpo.core.place import Place
from arpo.learner import Update
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.lora import full_state, is_finite
from arpo.learner.losses import LossReport, loss_denominator, metrics, policy_loss
from arpo.learner.malloc_trim import give_back, keep_freed
from arpo.learner.optimizer import load_optimizer, save_optimizer
from arpo.learner.packing import PackedBatch, pack
from arpo.learner.policy import Policy


class LocalLearner:
    """Trains `model` in place. `num_updates` is the length of the learning rate's schedule; see `arpo.learner.Learner`.

    `reference`: the model that the loss keeps the policy close to; None: the model as it is now. Ignored, and no copy
    kept, where `loss` has no divergence.
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
        self.loss, self.optim, self.num_updates, self.token_budget, self.dtype = (
            loss,
            optim,
            num_updates,
            token_budget,
            dtype,
        )
        keep_freed()
        # Autocast sets the precision: Accelerate's is a setting of the process, which two runs in one would share.
        self.accelerator = Accelerator(mixed_precision="no", cpu=model.device.type == "cpu")
        policy = Policy(model, tree=tree, temperature=temperature, entropy_grad=loss.entropy_coefficient > 0)
        self.reference = _frozen(policy, reference) if loss.kl_coefficient else None
        parameters = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.updates = 0

    @property
    def unwrapped(self) -> Policy:
        """The policy without Accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.policy)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def weights(self) -> dict[str, Tensor]:
        """All weights under the names of the transformers model, LoRA merged, on the model's device. Those that no
        adapter changes are the model's own tensors."""
        return full_state(self.unwrapped.model)

    def healthy(self) -> str | None:
        """None where all trained weights are finite, else the name of one that is not."""
        return next(
            (name for name, p in self.unwrapped.model.named_parameters() if p.requires_grad and not is_finite(p)), None
        )

    def save(self, folder: Path) -> None:
        """Write `folder/model` (with LoRA the adapters alone), optimizer.safetensors and optimizer.json."""
        self.unwrapped.model.save_pretrained(folder / "model")
        save_optimizer(folder, self.optimizer, self.updates)

    def load(self, folder: Path) -> None:
        """Take up the optimizer's state and the number of updates. Raises CheckpointError where they are another
        model's."""
        self.updates = load_optimizer(folder, self.optimizer)

    def packs(self, trees: Sequence[CreditedTree]) -> list[PackedBatch]:
        """`trees` as packs of at most `token_budget` tokens on the device."""
        return [p.to(self.device) for p in pack(trees, self.token_budget, flat=not self.unwrapped.tree)]

    def update(self, trees: Sequence[CreditedTree], updates: int = 1, *, seed: int | None = None) -> Update:
        """Take `updates` optimizer steps on disjoint mini-batches of whole trees, so that each token is trained on
        once; fewer where fewer trees can teach anything. The learning rate's schedule moves on by `updates` either way.

        Trees whose credit is 0 everywhere count in the mean but are not computed, since their gradient is 0 (under a
        divergence or an entropy bonus it is not, and they are computed). An update whose loss or gradient is not finite
        changes no weight and counts in `skipped_updates`.
        """
        if seed is not None:
            torch.manual_seed(seed)
        scored = [tree for tree in trees if tree.advantages]
        all_teach = self.loss.kl_coefficient or self.loss.entropy_coefficient
        teaching = [tree for tree in scored if all_teach or any(tree.credit.values())]
        parts = _split(teaching, updates)
        self.updates += updates - len(parts)  # the schedule moves on by what was planned
        if not parts:
            return Update(metrics={}, logprobs={})
        rows, tokens = (
            (a - b) / len(parts) for a, b in zip(_size(scored), _size(teaching), strict=True)
        )  # silent, per part
        sizes = [
            loss_denominator(part_rows + rows, part_tokens + tokens, self.loss)
            for part_rows, part_tokens in map(_size, parts)
        ]
        batches = [self.packs(part) for part in parts]
        if self.loss.entropy_advantage:
            batches = _weighed_by_entropy(batches, self.loss.entropy_advantage)
        # The first update's old log-probabilities are its own; later ones need them from before the weights moved.
        with self._autocast():
            before = [None, *([self.logprobs(p) for p in packs] for packs in batches[1:])]
        done = [self._one_update(*part) for part in zip(batches, before, sizes, strict=True)]
        logprobs: dict[str, dict[Place, array[float]]] = {}
        for part, packs, (reports, _) in zip(parts, batches, done, strict=True):
            for tree, place, values in _by_turn(part, packs, reports):
                logprobs.setdefault(tree, {})[place] = values
        return Update(metrics=self._metrics(batches, done), logprobs=logprobs)

    def sft_step(self, trees: Sequence[CreditedTree], stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Take one optimizer step on the mean negative log-probability (nats, at temperature 1) of the trees' turns.
        Where `stop`, which is called at every layer, returns True, no weight changes and there are no metrics."""
        packs = self.packs(trees)
        total = sum(p.num_policy for p in packs)
        summed = 0.0
        with self._passes():
            for batch in packs:
                try:
                    with _stoppable(self.unwrapped.base_model.get_decoder(), stop):
                        logprob_P, _ = self.policy(batch, temperature=1.0)
                        loss = -batch.rows(logprob_P).sum() / total
                        self.accelerator.backward(loss)
                except _Stopped:
                    self.optimizer.zero_grad(set_to_none=True)
                    return {}
                summed += loss.item()
        return {
            "loss": summed,
            **self._step(math.isfinite(summed)),
            "tokens_trained": float(sum(p.num_unique for p in packs)),
        }

    def time_pass(self, trees: Sequence[CreditedTree]) -> float:
        """Seconds of a forward and a backward pass over `trees`. Changes nothing."""
        packs = self.packs(trees)
        began = time.perf_counter()
        with self._passes():
            for batch in packs:
                loss = -batch.rows(self.policy(batch)[0]).sum()
                self.accelerator.backward(loss)
                loss.item()  # waits for a GPU
        seconds = time.perf_counter() - began
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch) -> Tensor:
        """[B, L] under the current weights, without gradient."""
        with self._passes():
            return batch.rows(self.policy(batch)[0])

    def _one_update(
        self, packs: Sequence[PackedBatch], old: Sequence[Tensor] | None, size: float
    ) -> tuple[list[LossReport], dict[str, float]]:
        """One optimizer step on `packs`; `size` is the denominator of the loss over all of them."""
        reports: list[LossReport] = []
        # One context for all packs, so that autocast casts each weight once; checkpointing runs forwards in the
        # backward.
        with self._passes():
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

    def _metrics(
        self, batches: Sequence[Sequence[PackedBatch]], done: Sequence[tuple[list[LossReport], dict[str, float]]]
    ) -> dict[str, float]:
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

    @torch.no_grad()
    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with self.reference.attention(), self._autocast():
            return batch.rows(self.reference(batch)[0])

    @contextmanager
    def _passes(self) -> Iterator[None]:
        """A context for forward and backward passes of the policy."""
        with self.unwrapped.attention(), self._autocast():
            yield

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


def _by_turn(
    trees: Sequence[CreditedTree], packs: Sequence[PackedBatch], reports: Sequence[LossReport]
) -> Iterator[tuple[str, Place, array[float]]]:
    """(task id, turn, the learner's log-probabilities of its tokens). A row holds the tokens of its path's turns in
    order, and `mismatch` is the learner's log-probability minus the engine's."""
    for batch, report in zip(packs, reports, strict=True):
        mask_BL = batch.row_mask_BL
        logprob_BL = torch.zeros_like(batch.engine_logprob_BL)
        logprob_BL[mask_BL] = batch.engine_logprob_BL[mask_BL] + report.tokens["mismatch"].to(logprob_BL)
        for (number, leaf), values in zip(batch.leaves, logprob_BL.tolist(), strict=True):
            tree, start = trees[number].tree, 0
            for place in (leaf[:depth] for depth in range(1, len(leaf) + 1)):
                end = start + len(tree.turns[place].tokens)
                yield tree.task, place, array("f", values[start:end])
                start = end


class _Stopped(Exception):
    """The pass was stopped; gradients hold a part of it."""


@contextmanager
def _stoppable(decoder: Any, stop: Callable[[], bool]) -> Iterator[None]:
    """Forward and backward passes of `decoder` inside raise _Stopped at the next layer once `stop` returns True: on a
    slow machine a pass takes minutes, and Ctrl-C must not. Without hooks torch runs the backward pass outside of
    Python, where no signal is heard."""

    def check(*_: object) -> None:
        if stop():
            raise _Stopped

    def check_backward(_module: object, _inputs: object, output: Any) -> None:
        check()
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(check)

    hooks = [layer.register_forward_hook(check_backward) for layer in getattr(decoder, "layers", ())]
    try:
        check()
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _frozen(policy: Policy, model: Any) -> Policy:
    """The reference: `model`, or a copy of the policy's where it is None."""
    frozen = (copy.deepcopy(policy.model) if model is None else model).requires_grad_(False).eval()
    return Policy(frozen, tree=policy.tree, temperature=policy.temperature)


def _weighed_by_entropy(batches: Sequence[Sequence[PackedBatch]], weight: float) -> list[list[PackedBatch]]:
    """The packs with AEPO's entropy-aware advantages `A (1 + a z(H))` (arXiv 2510.14545): H is the engine's entropy at
    a token, z its distance from the mean over the tokens of all rows, in (population) standard deviations."""
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
