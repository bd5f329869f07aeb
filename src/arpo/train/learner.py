"""The learner: packs in, one optimizer update out.

Knows the model, the loss and the optimizer. Refuses to know rollouts, engines and files. Built on Accelerate, which places the model,
sets the precision and reduces over ranks.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arpo.core.credit import CreditedTree
from arpo.errors import ConfigError
from arpo.train.attention import layout_of, model_inputs, supports_tree, tree_attention
from arpo.train.config import LossConfig, OptimConfig
from arpo.train.logprobs import Head, token_logprobs
from arpo.train.losses import LossReport, metrics, normaliser, policy_loss
from arpo.train.packing import PackedBatch, pack

Packing = Literal["auto", "tree", "flat"]


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

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        layout = layout_of(batch) if self.tree else None
        hidden_TH = self.plain.get_decoder()(**model_inputs(batch, layout)).last_hidden_state[0]
        head = Head.of(self.plain)
        return token_logprobs(
            batch.predicting(hidden_TH), batch.targets_P, head, temperature=self.temperature, entropy_grad=self.entropy_grad
        )


def trains_by_tree(model_config: Any, packing: Packing) -> tuple[bool, str | None]:
    """Whether to train tree-packed, and why not where that was left open. Raises ConfigError where `tree` is asked and cannot be."""
    reason = supports_tree(model_config)
    if packing == "tree" and reason:
        raise ConfigError(
            f"this model cannot be trained tree-packed: {reason}", where="train.packing", value=packing, hint="use flat or auto"
        )
    return packing != "flat" and reason is None, reason if packing == "auto" else None


class Learner:
    """Trains `model` in place. `num_updates` is the length of the schedule."""

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
    ) -> None:
        self.loss, self.optim, self.num_updates, self.token_budget = loss, optim, num_updates, token_budget
        precision = "bf16" if dtype is torch.bfloat16 else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=model.device.type == "cpu")
        policy = Policy(model, tree=tree, temperature=temperature, entropy_grad=loss.entropy_coefficient > 0)
        self.reference = _frozen(policy) if loss.kl_coefficient else None
        parameters = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.updates = 0

    @property
    def unwrapped(self) -> Policy:
        return self.accelerator.unwrap_model(self.policy)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def state(self) -> dict[str, Tensor]:
        """Full weights under the plain model's names, LoRA merged, on the model's device; what an engine loads."""
        model = self.unwrapped.model
        if not hasattr(model, "merge_adapter"):
            return {name: value.detach() for name, value in model.state_dict().items()}
        model.merge_adapter()
        try:
            return merged_state(model)
        finally:
            model.unmerge_adapter()

    def packs(self, trees: Sequence[CreditedTree]) -> list[PackedBatch]:
        return [p.to(self.device) for p in pack(trees, self.token_budget, flat=not self.unwrapped.tree)]

    def update(self, trees: Sequence[CreditedTree], updates: int = 1) -> dict[str, float]:
        """`updates` optimizer steps on disjoint mini-batches of whole trees, each token trained once. Returns metrics.

        Trees without any credit other than 0 are left out (their gradient is 0). An update whose loss or gradient is not finite is
        skipped and counted under `skipped_updates`.
        """
        batches = [self.packs(part) for part in _split([t for t in trees if any(t.credit.values())], updates)]
        # The first update's old log-probabilities are its own; later ones need them from before the weights moved.
        before = [None, *([self.logprobs(p) for p in packs] for packs in batches[1:])]
        totals: dict[str, float] = {}
        for packs, old in zip(batches, before, strict=False):
            for name, value in self._one_update(packs, old).items():
                totals[name] = totals.get(name, 0.0) + value
        done = max(1, len(batches))
        summed = ("skipped_updates", "tokens_trained", "tokens_flat", "tokens_in_loss", "updates")
        return {name: value if name in summed else value / done for name, value in totals.items()}

    def imitate(self, trees: Sequence[CreditedTree]) -> dict[str, float]:
        """One supervised update: mean negative log-probability of the trees' turns."""
        packs = self.packs(trees)
        total = sum(p.num_policy for p in packs)
        summed = 0.0
        for batch in packs:
            with self._computing():
                logprob_P, _ = self.policy(batch)
                loss = -batch.rows(logprob_P).sum() / total
                self.accelerator.backward(loss)
            summed += loss.item()
        return {"loss": summed, **self._step(math.isfinite(summed)), "tokens_trained": sum(p.num_unique for p in packs)}

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch) -> Tensor:
        """[B, L] of the current weights, without gradient."""
        with self._computing():
            return batch.rows(self.policy(batch)[0])

    def _one_update(self, packs: Sequence[PackedBatch], old: Sequence[Tensor] | None) -> dict[str, float]:
        whole = normaliser(sum(len(p.leaves) for p in packs), sum(p.num_policy for p in packs), self.loss)
        reports: list[LossReport] = []
        for number, batch in enumerate(packs):
            reference_BL = self._reference_logprobs(batch)
            with self._computing():
                logprob_P, entropy_P = self.policy(batch)
                loss, report = policy_loss(
                    batch.rows(logprob_P),
                    old[number] if old else None,
                    batch.engine_logprob_BL,
                    batch.advantage_BL,
                    batch.row_mask_BL,
                    self.loss,
                    normaliser=whole,
                    reference_logprob_BL=reference_BL,
                    entropy_BL=batch.rows(entropy_P),
                )
                self.accelerator.backward(loss)
            reports.append(report)
        figures = metrics(reports, self.loss)
        return {
            **figures,
            **self._step(math.isfinite(figures["loss"])),
            "updates": 1.0,
            "tokens_trained": sum(p.num_unique for p in packs),
            "tokens_flat": sum(p.num_flat for p in packs),
            "tokens_in_loss": sum(p.num_policy for p in packs),
        }

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad(), self.accelerator.autocast(), self.reference.attention():
            return batch.rows(self.reference(batch)[0])

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The recipe's precision and attention, for a forward and its backward."""
        with self.accelerator.autocast(), self.unwrapped.attention():
            yield

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
        self.updates += 1
        return {"lr": lr, "grad_norm": norm, "skipped_updates": float(skipped)}


def merged_state(model: Any) -> dict[str, Tensor]:
    """State of a PEFT model whose adapters are merged, under the plain model's parameter names."""
    state = {}
    for name, value in model.get_base_model().state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer", "")] = value.detach().clone()
    return state


def _frozen(policy: Policy) -> Policy:
    model = copy.deepcopy(policy.model).requires_grad_(False)
    return Policy(model, tree=policy.tree, temperature=policy.temperature)


def _split(trees: Sequence[CreditedTree], parts: int) -> Iterable[list[CreditedTree]]:
    """At most `parts` disjoint, non-empty portions of nearly equal length, in order."""
    parts = min(parts, len(trees))
    edges = [round(i * len(trees) / parts) for i in range(parts + 1)] if parts else []
    return [list(trees[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
