"""A model with LoRA adapters, seen as the plain model that it amounts to.

Knows PEFT's layers. Refuses to know training. The model itself always stays as it is: merging adapters in place and
taking them out again would wear the frozen weights down, a rounding each time.
"""

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def full_state(model: Any) -> "dict[str, Tensor]":
    """Weights of a transformers or PEFT model under the plain model's parameter names, what adapters add included
    (those matrices in float32, for in bf16 the first steps of adapters would be rounded away)."""
    if not hasattr(model, "get_base_model"):
        return {name: value.detach() for name, value in model.state_dict().items()}
    base = model.get_base_model()
    state = {name.replace(".base_layer", ""): v.detach() for name, v in base.state_dict().items() if ".lora_" not in name}
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight"):
            added = sum(module.get_delta_weight(adapter).detach().float() for adapter in module.active_adapters)
            state[f"{name}.weight"] = state[f"{name}.weight"].float() + added
    return state


def plain_model(model: Any) -> Any:
    """`model` itself, or what a PEFT model amounts to: a model without adapters that shares all other weights with
    it."""
    if not hasattr(model, "get_base_model"):
        return model
    plain = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).unload()
    plain.load_state_dict(full_state(model), assign=True)
    plain.tie_weights()
    return plain


def is_finite(tensor: "Tensor") -> bool:
    """Whether all its numbers are. One pass without memory of its own: of a NaN, both extremes are NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = tensor.detach().aminmax()
    return bool((most - least).isfinite()) or bool(tensor.isfinite().all())  # the difference of finite numbers can overflow
