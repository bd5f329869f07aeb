"""AdamW with moments of 8 bits (Dettmers et al., arXiv 2110.02861): torchao's, which also takes sharded parameters.

Torchao keeps moments of 4,096 numbers and more in codes of a byte and a scale for every 256 of them, a rank its own
rows. In files they are float32 (`exact`), so that any number of ranks, and either precision, takes them up
(`rounded`): with as many ranks they come to the same codes.

Knows torchao's moments. Refuses to know files and learning rates.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from arpo.errors import ConfigError, install
from arpo.learner.config import OptimConfig
from arpo.learner.sharding import local


def make_optimizer(parameters: Iterable[torch.nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW with the moments that `optim` names. Raises ConfigError where torchao is not installed."""
    if optim.moments == "float32":
        return torch.optim.AdamW(
            parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        what = f"torchao cannot be imported ({error})"
        raise ConfigError(what, where="optim.moments", value="int8", hint=install("int8")) from error
    return AdamW8bit(parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)  # type: ignore[no-any-return]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)  # a compiled step reads it
        else:
            group["lr"] = lr


def stepping(device: torch.device) -> AbstractContextManager[Any]:
    """A context for `step`: torchao compiles it, for which few machines without a GPU have a compiler and patience."""
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()


def exact(moment: Tensor) -> Tensor:
    """`moment` as numbers, not as codes."""
    if isinstance(moment, DTensor):
        return _like(moment, exact(moment.to_local()))
    coded: Any = moment
    return coded.dequantize() if _is_coded(moment) else moment  # type: ignore[no-any-return]


def rounded(optimizer: torch.optim.Optimizer, parameter: Tensor, slot: str, value: Tensor) -> Tensor:
    """`value`, a moment of `parameter`, as `optimizer` keeps it. What `exact` returned comes to the codes it had."""
    if slot == "step" or not hasattr(optimizer, "_new_buffer"):
        return value
    moment: Tensor = optimizer._new_buffer(parameter.detach(), slot == "exp_avg")  # torchao: signed or not
    own: Any = local(moment)
    if not _is_coded(own):
        return value
    from torchao.optim.quant_utils import quantize_8bit_with_qmap

    blocks = local(value).view(-1, own.block_size)
    least, most = blocks.aminmax(dim=1)
    # The codes reach from a little above -1 to 1, and a block's scale is the largest magnitude that it had.
    scale = torch.where(-least > most, least / own.qmap[0], most) if own.signed else most
    own.codes.copy_(quantize_8bit_with_qmap(blocks / scale.clamp_min(1e-12)[:, None], own.qmap).view(own.codes.shape))
    own.scale.copy_(scale)
    return moment


def _is_coded(moment: Tensor) -> bool:
    return hasattr(moment, "codes")


def _like(sharded: DTensor, own: Tensor) -> Tensor:
    return DTensor.from_local(
        own,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
