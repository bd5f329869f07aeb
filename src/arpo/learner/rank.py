"""A rank of the learner: a shard of the policy with its optimizer, and the passes over the packs that it is dealt.

Every rank is asked the same at the same time, each with packs of its own; where there is only one, it holds the whole
policy. Knows the policy, the loss and the optimizer. Refuses to know trees, schedules and other ranks' packs.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from arpo.errors import CheckpointError
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.int8_moments import make_optimizer, set_rate, stepping
from arpo.learner.logprobs import CHUNK
from arpo.learner.lora import full_state, is_finite
from arpo.learner.losses import Coefficients, LossReport, policy_loss
from arpo.learner.malloc_trim import give_back, keep_freed
from arpo.learner.optimizer import copy_moments, load_optimizer, write_moments
from arpo.learner.packing import PackedBatch
from arpo.learner.policy import Policy, Stopped, stoppable
from arpo.learner.sharding import (
    Placement,
    agreed,
    base_weights,
    checkpoint_names,
    clip_gradients,
    copied_model,
    device_of_rank,
    fill,
    local,
    mesh_of,
    shard,
    train_last,
    trained,
    whole_on_first,
    write_model,
)
from arpo.learner.shards import Rows, write


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """What a rank needs to know besides the model."""

    loss: LossConfig
    optim: OptimConfig
    tree: bool
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    """Of matrix products."""
    head_chunk: int = CHUNK
    """Positions whose logits are in memory at once."""


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """One optimizer step. `denominator`: of the loss, over all ranks' packs."""

    packs: Sequence[PackedBatch]
    denominator: float
    lr: float
    coefficients: Coefficients | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a mini-batch came to: a report of each of this rank's packs, the norm of the whole gradient before it was
    clipped, and whether the step was left out because something is not finite."""

    reports: Sequence[LossReport]
    grad_norm: float
    skipped: bool


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`build` makes a transformers or PEFT model. `folder`: safetensors that fill its weights once it is sharded
    (`arpo.learner.sharding:hollow`); None: `build` makes them, too."""

    build: Callable[[], Any]
    folder: Path | None = None


class Rank:
    """`mesh`: of all ranks, over which models are sharded; None: this one is alone."""

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.policy: Policy
        self.optimizer: torch.optim.Optimizer
        self.reference: Policy | dict[str, Tensor] | None = None
        self._copy: Any = None
        keep_freed()

    # --- set up

    def import_from(self, path: Sequence[str]) -> None:
        """Find modules where rank 0 does: a recipe may name a surrogate beside it."""
        sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns in this process."""
        return function(*arguments)

    def hold(self, source: ModelSource, seed: int, placement: Placement) -> None:
        """Hold the model of `source`, made from `seed` on."""
        torch.manual_seed(seed)
        self._source, self._placement = source, placement
        self.policy = Policy(source.build(), tree=False)
        self._take(self.policy, source)

    def start(self, settings: RankSettings, reference: ModelSource | None = None) -> None:
        """A new optimizer for the policy as it is. `reference`: the model that the loss keeps the policy close to;
        None: the policy as it is now. No reference is kept where the loss has no divergence."""
        self.loss, self.optim, self.dtype = settings.loss, settings.optim, settings.dtype
        self.policy.tree, self.policy.temperature = settings.tree, settings.temperature
        self.policy.entropy_grad, self.policy.chunk = bool(self.loss.entropy_coefficient), settings.head_chunk
        train_last(self.policy, self.optim.last_layers)
        self.reference = self._frozen(reference) if self.loss.divergence else None
        self.optimizer = make_optimizer([p for _, p in trained(self.policy)], self.optim)

    def _take(self, policy: Policy, source: ModelSource) -> None:
        if self.mesh is not None:
            shard(policy, self.mesh, self._placement)
        if source.folder is not None:
            fill(policy.base_model, source.folder)

    def _frozen(self, source: ModelSource | None) -> Policy | dict[str, Tensor]:
        """The reference. With LoRA only the adapters differ, so that their numbers are enough."""
        adapters = hasattr(self.policy.model, "get_base_model")
        if source is None and (adapters or self.mesh is None):
            if adapters:
                return {name: local(p.detach()).clone() for name, p in trained(self.policy)}
            made = ModelSource(partial(copy.deepcopy, self.policy.model))
        else:
            made = source or self._source
        policy = Policy(made.build(), tree=self.policy.tree, temperature=self.policy.temperature)
        policy.chunk = self.policy.chunk
        self._take(policy, made)
        if adapters:
            return {name: local(p.detach()).clone() for name, p in trained(policy)}
        if source is None and self.mesh is not None:
            for own, other in zip(policy.parameters(), self.policy.parameters(), strict=True):
                local(own.detach()).copy_(local(other.detach()))
        policy.requires_grad_(False).eval()
        return policy

    # --- passes

    @property
    def device(self) -> torch.device:
        if self.mesh is not None and self.mesh.device_type == "cuda":
            return torch.device("cuda", torch.cuda.current_device())  # weights may be in main memory
        return local(next(self.policy.parameters())).device

    def update(self, batches: Sequence[MiniBatch], seed: int | None) -> list[Done]:
        """Take one optimizer step a mini-batch. `seed`: of what dropout draws.

        The first one's old log-probabilities are its own; later ones need them from before the weights moved. Where the
        loss asks for the engine's, they come with the packs."""
        if seed is not None:
            torch.manual_seed(seed + (self.mesh.get_rank() if self.mesh else 0))
        moved = [[pack.to(self.device) for pack in batch.packs] for batch in batches]
        before: list[Sequence[Tensor] | None]
        if self.loss.old_logprobs == "engine":
            before = [[pack.engine_logprob_BL for pack in packs] for packs in moved]
        else:
            with self._autocast():
                before = [None, *([self.logprobs(pack) for pack in packs] for packs in moved[1:])]
        return [self._one(*each) for each in zip(batches, moved, before, strict=True)]

    def sft(
        self, packs: Sequence[PackedBatch], stop: Callable[[], bool], num_tokens: int, lr: float
    ) -> tuple[float, Done] | None:
        """One optimizer step on the mean negative log-probability of `num_tokens` tokens of all ranks. Returns this
        rank's part of the loss; None where `stop`, which a single rank asks at every layer and several before each
        pack, returned True: then no weight changed."""
        summed = 0.0
        with self._passes():
            for batch in packs:
                if self.mesh is not None and agreed(stop(), self.mesh):
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                moved = batch.to(self.device)
                try:
                    with self._stoppable(stop):
                        logprob_P, _ = self.policy(moved, temperature=1.0)
                        loss = -moved.rows(logprob_P).sum() / num_tokens
                        loss.backward()
                except Stopped:
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                summed += loss.item()
        return summed, self._step((), math.isfinite(summed), lr)

    def time_pass(self, packs: Sequence[PackedBatch]) -> float:
        """Seconds of a forward and a backward pass. Changes nothing."""
        moved = [pack.to(self.device) for pack in packs]
        began = time.perf_counter()
        with self._passes():
            for batch in moved:
                loss = -batch.rows(self.policy(batch)[0]).sum()
                loss.backward()
                loss.item()  # waits for a GPU
        seconds = time.perf_counter() - began
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch) -> Tensor:
        """[B, L] under the current weights, without gradient."""
        with self._passes():
            return batch.rows(self.policy(batch)[0])

    def _one(self, batch: MiniBatch, packs: Sequence[PackedBatch], old: Sequence[Tensor] | None) -> Done:
        reports: list[LossReport] = []
        references = self._reference_logprobs(packs)
        # One context for all packs, so that autocast casts each weight once; checkpointing runs forwards in the
        # backward.
        with self._passes():
            for number, pack in enumerate(packs):
                logprob_P, entropy_P = self.policy(pack)
                if not pack.leaves:  # nothing to learn: the ranks gather weights and add gradients together
                    logprob_P.sum().backward()
                    continue
                loss, report = policy_loss(
                    pack.rows(logprob_P),
                    old[number] if old else None,
                    pack.engine_logprob_BL,
                    pack.advantage_BL,
                    pack.row_mask_BL,
                    self.loss,
                    denominator=batch.denominator,
                    reference_logprob_BL=next(references),
                    entropy_BL=pack.rows(entropy_P),
                    trained_BL=pack.trained_BL,
                    turn_BL=pack.turn_BL,
                    length_B=pack.length_B,
                    coefficients=batch.coefficients,
                )
                loss.backward()
                reports.append(report.to("cpu"))
        return self._step(reports, math.isfinite(sum(report.loss for report in reports)), batch.lr)

    @torch.no_grad()
    def _reference_logprobs(self, packs: Sequence[PackedBatch]) -> Iterator[Tensor | None]:
        """Of each pack that teaches, in order. The adapters of a reference take the policy's place for as long."""
        if self.reference is None:
            return iter([None] * len(packs))
        if isinstance(self.reference, Policy):
            with self.reference.attention(), self._autocast():
                rows = [pack.rows(self.reference(pack)[0]) for pack in packs]
        else:
            training = self.policy.training
            self._exchange()
            self.policy.eval()
            try:
                rows = [self.logprobs(pack) for pack in packs]
            finally:
                self._exchange()
                self.policy.train(training)
        return iter([row for row, pack in zip(rows, packs, strict=True) if pack.leaves])

    def _exchange(self) -> None:
        assert isinstance(self.reference, dict)
        for name, parameter in trained(self.policy):
            own, other = local(parameter.detach()), self.reference[name]
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    def _step(self, reports: Sequence[LossReport], finite: bool, lr: float) -> Done:
        """Clip the gradients of all ranks and take the step, unless something is not finite on any of them."""
        set_rate(self.optimizer, lr)
        limit = math.inf if self.optim.grad_clip is None else self.optim.grad_clip
        norm = clip_gradients(self.policy.parameters(), limit)
        skipped = agreed(not (finite and math.isfinite(norm)), self.mesh)
        if not skipped:
            with stepping(self.device):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        give_back()
        return Done(reports, norm, skipped)

    @contextmanager
    def _passes(self) -> Iterator[None]:
        """A context for forward and backward passes of the policy."""
        with self.policy.attention(), self._autocast():
            yield

    def _autocast(self) -> AbstractContextManager[None]:
        """Matrix products in the recipe's precision; sharded weights come in it (`shard`)."""
        lowered = self.dtype is torch.bfloat16 and self.mesh is None
        return torch.autocast(self.device.type, self.dtype) if lowered else nullcontext()

    def _stoppable(self, stop: Callable[[], bool]) -> AbstractContextManager[None]:
        return stoppable(self.policy.base_model.get_decoder(), stop) if self.mesh is None else nullcontext()

    # --- weights

    def healthy(self) -> str | None:
        """The name of a trained weight that is not finite, if one is."""
        return next((name for name, p in trained(self.policy.model) if not is_finite(local(p))), None)

    def adapted(self) -> bool:
        """Whether LoRA adapters are what is trained."""
        return hasattr(self.policy.model, "get_base_model")

    def pair_cost(self) -> float:
        """What a (query, key) pair costs in attention, in units of a token in all layers' products."""
        return self.policy.pair_cost()

    def save_model(self, folder: Path) -> None:
        """Write the weights (with LoRA the adapters alone) as a Hugging Face folder."""
        self._write_model(folder, self._copied_model())

    def copy(self, updates: int) -> None:
        """Keep weights and moments as they are now, in main memory, until `write_copy`."""
        moments = copy_moments(self.optimizer, dict(trained(self.policy)))
        self._copy = (self._copied_model(), moments, updates)

    def write_copy(self, folder: Path) -> None:
        """Write what `copy` kept: `folder/model`, optimizer.safetensors and optimizer.json. For any thread, whatever
        happens to the weights meanwhile. Raises CheckpointError where the disk does not take it."""
        (model, moments, updates), self._copy = self._copy, None
        try:
            self._write_model(folder / "model", model)
            write_moments(folder, moments, updates, first_rank=self.first)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be written: {error}") from error

    def _copied_model(self) -> dict[str, Any]:
        return copied_model(self.policy.model, sharded=self.mesh is not None, first=self.first)

    def _write_model(self, folder: Path, copied: dict[str, Any]) -> None:
        write_model(self.policy.model, folder, copied, sharded=self.mesh is not None, first=self.first)

    def load(self, folder: Path) -> int:
        """Take up the optimizer's state. Returns the number of updates. Raises CheckpointError where they are another
        model's."""
        return load_optimizer(folder, self.optimizer, dict(trained(self.policy)))

    @property
    def first(self) -> bool:
        """Whether this is the first rank, which writes what all have alike."""
        return self.mesh is None or self.mesh.get_rank() == 0

    def weights(self) -> dict[str, Tensor]:
        """All weights under the names of the transformers model, LoRA merged. Alone: those that no adapter changes are
        the model's own tensors. Else tensors without memory, which `weight` then gathers one by one."""
        state = full_state(self.policy.model)
        if self.mesh is None:
            return state
        own, first = base_weights(self.policy.base_model), dict[int, str]()
        for name, tensor in own.items():
            first.setdefault(id(tensor), name)  # what is tied is one tensor under several names
        self._state = {name: state[first[id(tensor)]] for name, tensor in own.items()}
        shapes = {id(v): torch.empty(v.shape, dtype=v.dtype, device="meta") for v in self._state.values()}
        return {name: shapes[id(value)] for name, value in self._state.items()}

    def weight(self, name: str, dtype: torch.dtype | None = None) -> Tensor | None:
        """A weight of those that `weights` named last, gathered from all ranks in `dtype` (None: as it is); None but on
        the first rank."""
        value = self._state[name]
        return whole_on_first(value, dtype or value.dtype)

    def write_weights(self, folder: Path, dtype: torch.dtype | None, unties: bool) -> None:
        """Write those weights to safetensors in `folder`, under a checkpoint's names and in `dtype` (None: as they
        are), each rank its rows. `unties`: write a tied head once more."""
        state = checkpoint_names(self.policy.base_model, self._state, unties=unties)
        rows = {name: Rows.shared(value, dtype) for name, value in state.items()}
        write(folder, "model", rows, first_rank=self.first)


def torch_rank() -> Rank:
    """The rank that this process is, where torchrun started it."""
    return Rank(mesh_of(device_of_rank()))
