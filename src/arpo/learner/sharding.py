"""A policy over several ranks: FSDP2, one unit a decoder layer and one for the policy itself.

The root is `Policy`, since its forward reads the weight of the LM head outside of any module's call, and FSDP2 gathers
a unit's weights at the unit's own forward. Knows `fully_shard` and DTensors. Refuses to know packs and losses.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from arpo.errors import ConfigError
from arpo.learner.policy import Policy
from arpo.learner.shards import Rows, SafetensorsFolder, write

CPU_SUM = 2**14
"""Squares that are added up in float32: torch's sum of many more on a CPU is not exact (28 million: 4e-3 off)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where weights, gradients and moments are."""

    dtype: torch.dtype = torch.float32
    """Of matrix products, and of gathered weights. Shards stay in float32."""
    offload: bool = False
    """Shards lie in main memory, and are copied to the device as their layer's turn comes."""
    replicas: int = 1
    """Copies of the weights: the ranks are divided into as many groups, each of which shares one (HSDP)."""


def device_of_rank() -> torch.device:
    """Where this process computes as one of several ranks: on the GPU of its local number, or on the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def mesh_of(device: torch.device) -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(policy: Policy, mesh: DeviceMesh, placement: Placement) -> None:
    """Shard the parameters of `policy` over the ranks of `mesh`, in place. Gradients are summed in float32. Autocast
    would keep a copy of all gathered weights, on every rank. Raises ConfigError where the ranks cannot be divided into
    as many groups as there are to be replicas."""
    size, replicas = mesh.size(), placement.replicas
    if size % replicas:
        what = f"{size} ranks cannot share {replicas} copies of the weights evenly"
        raise ConfigError(what, where="model.replicas", value=replicas, hint=f"a divisor of {size}")
    if replicas > 1:
        mesh = init_device_mesh(mesh.device_type, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))
    options: dict[str, Any] = {"mesh": mesh}
    if placement.dtype is not torch.float32:
        options["mp_policy"] = MixedPrecisionPolicy(placement.dtype, reduce_dtype=torch.float32)
    if placement.offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    for layer in getattr(policy.base_model.get_decoder(), "layers", ()):
        fully_shard(_solid(layer), **options)
    fully_shard(_solid(policy), **options)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is divided by the count over all ranks
            module.set_force_sum_reduction_for_comms(True)  # with a divide factor gloo has no reduction


def _solid(module: Any) -> Any:
    """`module`, where parameters that took no memory (`hollow`) have some now: of a shard only its rows are touched."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor) and not any(parameter.stride()) and parameter.numel() > 1:
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype)
    return module


def local(value: Tensor) -> Tensor:
    """This rank's part of `value`, in the same memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """`value` gathered from all ranks, which call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_on_first(value: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`value` in `dtype`, gathered from all ranks, which call this together, on the first; None on the others. It
    receives their rows in place, since a collective of gloo takes the memory of the whole tensor twice."""
    here, ranks = dist.get_rank(), [0]
    if isinstance(value, DTensor):  # of replicas the first sends
        senders = tuple(slice(None) if isinstance(placement, Shard) else 0 for placement in value.placements)
        ranks = value.device_mesh.mesh[senders].flatten().tolist()
    if here == 0:
        result = torch.empty(value.shape, dtype=dtype, device=device_of_rank())
        parts = result.split(-(-len(value) // len(ranks))) if value.dim() and len(value) else [result]
        parts[0].copy_(local(value))
        for rank, part in zip(ranks[1:], parts[1:], strict=False):  # the last ranks of few rows have none
            dist.recv(part, src=rank)
        return result
    if here in ranks and (rows := local(value)).numel():
        dist.send(rows.to(device_of_rank(), dtype).contiguous(), dst=0)
    return None


def agreed(flag: bool, mesh: DeviceMesh | None) -> bool:
    """Whether `flag` is True on any rank."""
    if mesh is None:
        return flag
    anywhere = torch.tensor(float(flag), device=mesh.device_type)
    dist.all_reduce(anywhere, dist.ReduceOp.MAX, group=mesh.get_group())
    return bool(anywhere)


def clip_gradients(parameters: Iterable[torch.nn.Parameter], limit: float) -> float:
    """Scale the gradients of all ranks to a norm of `limit` where theirs is larger. Returns their norm before.

    As `torch.nn.utils.clip_grad_norm_`, but that the norm is the same however many ranks there are."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    own = [local(gradient) for gradient in gradients]
    parts = [part for g in own for part in (g.flatten().split(CPU_SUM) if g.device.type == "cpu" else [g])]
    squared = torch.stack(torch._foreach_norm(parts)).double().square().sum()
    if isinstance(first := gradients[0], DTensor):  # replicas of a shard have the same gradients
        sums = [Partial() if isinstance(placement, Shard) else Replicate() for placement in first.placements]
        mesh = first.device_mesh
        squared = DTensor.from_local(squared.to(mesh.device_type), mesh, sums).full_tensor()
    norm = math.sqrt(squared)
    if norm + 1e-6 > limit:
        torch._foreach_mul_(own, limit / (norm + 1e-6))
    return norm


def trained(module: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters that the optimizer changes."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


_FROZEN = "frozen_by_train_last"


def train_last(policy: Policy, last: int | None) -> None:
    """Freeze the embeddings and all layers of `policy` but the `last`; None: none. What an earlier call froze is
    trained again. Raises ConfigError where there are not so many layers."""
    for parameter in policy.parameters():
        if parameter.__dict__.pop(_FROZEN, False):
            parameter.requires_grad_(True)
    if last is None:
        return
    layers = getattr(policy.base_model.get_decoder(), "layers", ())
    if last > len(layers):
        raise ConfigError(f"the model has {len(layers)} layers", where="optim.last_layers", value=last)
    for module in (policy.base_model.get_input_embeddings(), *layers[: len(layers) - last]):
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.__dict__[_FROZEN] = True
                parameter.requires_grad_(False)


def base_weights(model: Any) -> dict[str, Tensor]:
    """The parameters and buffers of a transformers model under its own names, those of adapters left out."""
    state = model.state_dict(keep_vars=True)
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


def checkpoint_names(model: Any, state: Mapping[str, Tensor], *, unties: bool = False) -> dict[str, Tensor]:
    """`state`, which has the names of the transformers `model`, under those that its checkpoints have. What is tied
    stands under its first name alone, unless `unties`. Raises ConfigError where the checkpoints join or cut tensors,
    which a shard cannot."""
    from transformers.core_model_loading import revert_weight_conversion

    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if unties or id(tensor) not in seen:
            kept[name] = tensor
        seen.add(id(tensor))
    renamed: dict[str, Tensor] = dict(revert_weight_conversion(model, dict(kept)))
    if {id(tensor) for tensor in renamed.values()} != seen:
        what = f"{type(model).__name__} has other tensors than its checkpoints"
        raise ConfigError(f"{what}, so ranks cannot share it", where="model.source", hint="train it in one process")
    return renamed


def fill(model: Any, folder: Path) -> None:
    """Give the sharded weights of a transformers `model` the numbers that the safetensors in `folder` hold: each rank
    reads its own rows. Raises ConfigError where one is missing."""
    weights = checkpoint_names(model, base_weights(model))
    with SafetensorsFolder(folder) as saved, torch.no_grad():
        if missing := [name for name in weights if name not in saved]:
            shown = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            what = f"the weights in {folder} lack {len(missing)} of the model's parameters: {shown}"
            raise ConfigError(what, where="model.source")
        for name, tensor in weights.items():
            saved.read_into(name, tensor)


def hollow(model: Any) -> Any:
    """`model`, whose parameters are on the meta device, with parameters that say they are zeros in main memory and take
    none: adapters can be added to it, and sharded it takes the memory of its shards."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                made[id(parameter)] = torch.nn.Parameter(zeros, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
    return model


def write_config(model: Any, folder: Any) -> None:
    """What a Hugging Face folder holds beside its tensors."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def copied_model(model: Any, *, sharded: bool, first: bool) -> dict[str, Any]:
    """The weights of a transformers model, or the adapters of a PEFT model, as they are now. Of a `sharded` model each
    rank has its rows; all else only the `first` has."""
    if hasattr(model, "get_base_model"):
        state = {name: whole(p.detach()) for name, p in model.named_parameters() if ".lora_" in name}
    elif sharded:
        return {name: Rows.copied(value) for name, value in checkpoint_names(model, base_weights(model)).items()}
    else:
        state = model.state_dict(keep_vars=True)
    if not first:
        return {}
    copies = {id(value): value.detach().to("cpu", copy=True) for value in state.values()}
    return {name: copies[id(value)] for name, value in state.items()}  # what is tied stays so


def write_model(model: Any, folder: Path, copied: dict[str, Any], *, sharded: bool, first: bool) -> None:
    """Write what `copied_model` returned as a Hugging Face folder."""
    if sharded and not hasattr(model, "get_base_model"):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, "model", copied, first_rank=first)
        if first:
            write_config(model, folder)
    elif first:
        model.save_pretrained(folder, state_dict=copied)
