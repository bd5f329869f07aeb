"""The merged weights of a model with LoRA adapters.

Knows PEFT's layers. Refuses to know training. The model stays as it is: merging adapters in place and unmerging them
again would round the frozen weights each time.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def full_state(model: Any) -> "dict[str, Tensor]":
    """Weights of a transformers or PEFT model under the transformers model's names, adapters merged. Merged matrices
    are float32: in bf16 the first steps of adapters would be rounded away. Those of a base in 4 bits are made one by
    one in main memory, since the device may not hold them all."""
    if not hasattr(model, "get_base_model"):
        return {name: value.detach() for name, value in model.state_dict().items()}
    base = model.get_base_model()
    state = {
        name.replace(".base_layer", ""): v.detach()
        for name, v in base.state_dict().items()
        if ".lora_" not in name and ".weight." not in name  # scales of weights in 4 bits
    }
    for name, module in base.named_modules():
        weight, key = getattr(module, "weight", None), f"{name}.weight"
        in_4_bits = hasattr(weight, "quant_state")
        if hasattr(module, "get_delta_weight"):
            added = sum(module.get_delta_weight(adapter).detach().float() for adapter in module.active_adapters)
            merged = (_from_4_bits(weight) if in_4_bits else state[key]).float() + added
            state[key] = merged.cpu() if in_4_bits else merged
        elif in_4_bits and not name.endswith(".base_layer"):
            state[key] = _from_4_bits(weight).cpu()
    return state


def _from_4_bits(weight: Any) -> "Tensor":
    from bitsandbytes.functional import dequantize_4bit

    values: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return values


class LoraWeights(Mapping[str, "Tensor"]):
    """The merged weights of a policy with LoRA, made by `merge` when they are first looked at, and the adapters alone,
    which `write` writes as a PEFT folder."""

    def __init__(self, merge: Callable[[], Mapping[str, "Tensor"]], write: Callable[[Path], object]) -> None:
        self._merge, self._write = merge, write

    def write_adapters(self, folder: Path) -> None:
        self._write(folder)

    @cached_property
    def merged(self) -> Mapping[str, "Tensor"]:
        return self._merge()

    def __getattr__(self, name: str) -> Any:  # `shapes`, `write`, ... of the weights of several ranks
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.merged, name)

    def __getitem__(self, name: str) -> "Tensor":
        return self.merged[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.merged)

    def __len__(self) -> int:
        return len(self.merged)


def published_state(model: Any) -> Mapping[str, "Tensor"]:
    """What an engine takes of a transformers or PEFT model (`Weights.state`)."""
    if not hasattr(model, "get_base_model"):
        return full_state(model)
    return LoraWeights(partial(full_state, model), model.save_pretrained)


def plain_model(model: Any) -> Any:
    """`model`, or for a PEFT model one without adapters that has the merged weights and shares all others with it."""
    if not hasattr(model, "get_base_model"):
        return model
    base = model.get_base_model()
    if hasattr(base, "hf_quantizer"):
        plain = _without_weights(base)
    else:
        plain = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).unload()
    plain.load_state_dict(full_state(model), assign=True)
    plain.tie_weights()
    return plain.to(next(model.parameters()).device)


def _without_weights(base: Any) -> Any:
    """A model as the quantised `base` would be in full, its parameters on the meta device."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(base.config)
    del config.quantization_config
    with init_empty_weights(include_buffers=False):
        plain = type(base)(config)
    plain.name_or_path, plain.generation_config = base.name_or_path, base.generation_config
    return plain


def is_finite(tensor: "Tensor") -> bool:
    """Whether all numbers of `tensor` are finite. One pass that allocates nothing: of a NaN, both extremes are NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = tensor.detach().aminmax()
    return bool((most - least).isfinite()) or bool(
        tensor.isfinite().all()
    )  # the difference of finite numbers can overflow
