"""A policy over several ranks: FSDP2, one unit a decoder layer and one for the policy itself.

The root is `Policy`, since its forward reads the weight of the LM head outside of any module's call, and FSDP2 gathers
a unit's weights at the unit's own forward. Knows `fully_shard` and DTensors. Refuses to know packs and losses.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from arpo.errors import ConfigError
from arpo.learner.policy import Policy


def mesh_of(device: torch.device) -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(policy: Policy, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard the parameters of `policy` over `mesh`, in place. Matrix products run in `dtype`, gradients are summed in
    float32. Autocast would keep a copy of all gathered weights in `dtype`, on every rank."""
    precision = (
        MixedPrecisionPolicy() if dtype is torch.float32 else MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32)
    )
    for layer in getattr(policy.base_model.get_decoder(), "layers", ()):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is divided by the count over all ranks
            module.set_force_sum_reduction_for_comms(True)  # with a divide factor gloo has no reduction


def local(value: Tensor) -> Tensor:
    """This rank's part of `value`, in the same memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """`value` gathered from all ranks, which call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def agreed(flag: bool, mesh: DeviceMesh | None) -> bool:
    """Whether `flag` is True on any rank."""
    if mesh is None:
        return flag
    anywhere = torch.tensor(float(flag), device=mesh.device_type)
    dist.all_reduce(anywhere, dist.ReduceOp.MAX, group=mesh.get_group())
    return bool(anywhere)


def trained(module: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters that the optimizer changes."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def checkpoint_names(model: Any) -> dict[str, Tensor]:
    """The parameters and buffers of a transformers model under the names that its checkpoints have, each once: what is
    tied is written under its first name. Raises ConfigError where the checkpoints join or cut tensors, which a shard
    cannot."""
    from transformers.core_model_loading import revert_weight_conversion

    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    renamed: dict[str, Tensor] = dict(revert_weight_conversion(model, dict(state)))
    if {id(tensor) for tensor in renamed.values()} != seen:
        what = f"{type(model).__name__} has other tensors than its checkpoints"
        raise ConfigError(f"{what}, so ranks cannot share it", where="model.source", hint="train it in one process")
    return renamed


def write_config(model: Any, folder: Any) -> None:
    """What a Hugging Face folder holds beside its tensors."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
