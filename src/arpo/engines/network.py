"""The engine's own copy of a Hugging Face causal LM: its modules, its attention, its weights' layout in memory.

Modules are copied and parameters shared with the model it came from wherever they are used as they are, so nothing that
the learner sets (training mode, attention implementation, hooks, checkpointing) reaches sampling. Knows no requests and
no slots.
"""

import copy
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arpo.engines import attention
from arpo.errors import ConfigError, EngineError, first_line

_ROWS = 64  # rows a call that oneDNN lays weights out for; other numbers work as well
_FULL = "use a decoder with full attention (Llama, Qwen2, Qwen3, Mistral, ...)"
_ATTENTION = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
}  # kinds of layers whose keys branches can share


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token costs in the cache."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's blocked layout: the same numbers, no repacking at each call.

    Measured for SmolLM2 with 64 rows on 2 Zen cores: float32 119 -> 46 ms a step, bfloat16 29 -> 24 ms.
    """

    block = 1
    """Columns that lie together; fewer take as much memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Any = None
        self.bias: Tensor | None = None

    def take(self, name: str, tensor: Tensor) -> None:
        """weight [out, in] or bias [out]."""
        setattr(self, name, self._packed(tensor) if name == "weight" else tensor)

    def _packed(self, weight: Tensor) -> Any:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


class HalfWeightLinear(PackedLinear):
    """A linear layer that keeps float16 weights and multiplies in float32 (FBGEMM): half of the memory to read, which
    is what a decoding step of few requests waits for.

    Measured for SmolLM2 on one Zen 3 core, products of a step: 8 rows 85 -> 52 ms, 32 rows 174 -> 133 ms.
    """

    block = 512

    def _packed(self, weight: Tensor) -> Any:
        return torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), None)

    def forward(self, rows: Tensor) -> Tensor:
        product = torch.ops.quantized.linear_dynamic_fp16(rows, self.weight)
        return product if self.bias is None else product.add_(self.bias)


class Network:
    """Forward passes over flat token rows.

    model: a transformers causal LM with full attention. dtype: float32 shares its parameters (packing aside), bfloat16
    copies, float16 on a CPU keeps the weights of linear layers so and computes in float32 (`dtype` is then float32).
    Raises ConfigError for a model that cannot be sampled this way.
    """

    def __init__(
        self, model: nn.Module, *, dtype: torch.dtype, device: torch.device, max_tokens: int | None = None
    ) -> None:
        attention.register()
        _refuse_recurrent(model)
        linear = linear_kind(device, dtype)
        self.dtype = torch.float32 if linear is HalfWeightLinear else dtype
        self.device = device
        self.pads = linear is PackedLinear  # oneDNN prepares each new number of rows once, at a cost
        self.module: Any = _own(model, device)
        self.limit = _limit(self.module.config, max_tokens)
        # Names under which a state dict may give one parameter: more than one where parameters are tied.
        self._names = _names(self.module)
        parameters = dict(self.module.named_parameters())
        self._sizes = {names[0]: tuple(parameters[names[0]].shape) for names in self._names}
        if linear is not None:
            _replace_linears(self.module, linear)
        self._assign({name: parameters[name] for name in self._sizes})
        self.shape = self._probe()

    def _probe(self) -> Shape:
        """Run two tokens to see which layers keep keys, and of what size."""
        probe = attention.Probe()
        name = type(self.module).__name__
        try:
            logits = self.forward([0, 0], [0, 1], probe, [1])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model's own code, met for the first time
            wrong = f"{name} cannot be sampled by the local engine: {first_line(error)}"
            raise ConfigError(wrong, where="model.source", hint=_FULL) from error
        self.vocabulary = logits.shape[-1]
        shapes = set(probe.shapes.values())
        if len(shapes) != 1 or sorted(probe.shapes) != list(range(len(probe.shapes))):
            raise ConfigError(f"{name}: layers keep keys of different sizes", where="model.source", hint=_FULL)
        if probe.windows and min(probe.windows) < self.limit:
            where, hint = (
                "engine.max_tokens_per_slot",
                f"set engine.max_tokens_per_slot to at most {min(probe.windows)}",
            )
            raise ConfigError(f"{name} attends within a window", where=where, value=min(probe.windows), hint=hint)
        if (turns := _positions_turn_at(self.module.config)) is not None and turns < self.limit:
            wrong = f"{name} turns every position otherwise in a context of more than {turns} tokens (longrope)"
            hint = f"set engine.max_tokens_per_slot to at most {turns}"
            raise ConfigError(wrong, where="engine.max_tokens_per_slot", value=self.limit, hint=hint)
        heads, kv_heads, head_dim = shapes.pop()
        return Shape(len(probe.shapes), heads, kv_heads, head_dim)

    def forward(self, tokens: Sequence[int], positions: Sequence[int], layout: Any, rows: Sequence[int]) -> Tensor:
        """Logits [len(rows), vocabulary] at the flat `rows` of a pass over `tokens` at `positions`."""
        with torch.inference_mode():
            out = self.module(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                logits_to_keep=torch.tensor(rows, dtype=torch.long, device=self.device),
                layout=layout,
            )
            return out.logits[0]

    def load(self, state: Mapping[str, Tensor] | str | Path, *, copies: bool = False) -> None:
        """Take other weights: a full state dict (LoRA merged) or a folder of safetensors. Raises EngineError.

        With `copies` none of them is shared, so that they may change later.
        """
        if isinstance(state, (str, Path)):
            state = _read(Path(state))
        shapes = getattr(state, "shapes", state)  # of sharded weights, which a look-up gathers
        known: dict[str, str] = {}
        for names in self._names:
            name = next((n for n in names if n in shapes), None)
            if name is None:
                raise EngineError(f"the weights lack {names[0]!r} (a LoRA state must be merged first)")
            if tuple(shapes[name].shape) != self._sizes[names[0]]:
                raise EngineError(
                    f"{name!r} has shape {tuple(shapes[name].shape)}, the model's is {self._sizes[names[0]]}"
                )
            known[names[0]] = name
        self._assign(state, known, copies=copies)

    def _assign(
        self, state: Mapping[str, Tensor], known: Mapping[str, str] | None = None, *, copies: bool = False
    ) -> None:
        """`known`: under which name the state has a tensor, where that is another. A tensor that already has the right
        type and device is shared, not copied, unless `copies` says so."""
        with torch.no_grad():
            for names in self._names:
                tensor = state[known[names[0]] if known else names[0]].detach().to(self.device, self.dtype, copy=copies)
                for name in names:
                    path, _, leaf = name.rpartition(".")
                    place = self.module.get_submodule(path)
                    if isinstance(place, PackedLinear):
                        place.take(leaf, tensor)
                    else:
                        place._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _refuse_recurrent(model: nn.Module) -> None:
    """Branches share keys of their common tokens; a state that every token changes cannot be shared so."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - _ATTENTION
    if kinds or getattr(type(model), "_is_stateful", False):
        what = f"layers of the kind {', '.join(sorted(kinds))}" if kinds else "recurrent layers"
        wrong = f"{type(model).__name__} has {what}, which the local engine cannot branch"
        raise ConfigError(wrong, where="model.source", hint=_FULL)


def has_half_weights(device: torch.device) -> bool:
    """True where linear layers can keep float16 weights and compute in float32: x86 CPUs that FBGEMM supports."""
    return _is_x86(device) and "fbgemm" in torch.backends.quantized.supported_engines


def _is_x86(device: torch.device) -> bool:
    return device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")


def linear_kind(device: torch.device, dtype: torch.dtype) -> type[PackedLinear] | None:
    """The class of linear layers that is fastest for `dtype`; None: torch's own. oneDNN keeps bfloat16 weights packed
    only on a CPU that has instructions for them."""
    if dtype == torch.float16 and device.type == "cpu":
        if not has_half_weights(device):
            wrong = "float16 weights need an x86 CPU that FBGEMM supports, or a GPU"
            raise ConfigError(wrong, where="engine.dtype", value="float16", hint="use 'auto'")
        return HalfWeightLinear
    if not _is_x86(device) or not torch.backends.mkldnn.is_available():
        return None
    packs = dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return PackedLinear if packs else None


def _own(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the modules (buffers and config copied, parameters shared) in evaluation mode with this engine's
    attention."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    own: Any = copy.deepcopy(model, shared)
    own.eval()
    for module in own.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module.__dict__.pop(
            "forward", None
        )  # a wrapper set on the instance (autocast, say) would lead back to the original
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = attention.NAME
    for module in own.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return own


def _limit(config: Any, max_tokens: int | None) -> int:
    """The longest context in tokens: the model's, or less where the user says so."""
    own: int | None = getattr(config, "max_position_embeddings", None)
    where = "engine.max_tokens_per_slot"
    if max_tokens is None:
        if own is None:
            raise ConfigError("the model does not say how long its context is", where=where, hint="set it")
        return own
    if own is not None and max_tokens > own:
        hint = f"at most {own}, the model's context"
        raise ConfigError("a slot cannot be longer than the model's context", where=where, value=max_tokens, hint=hint)
    return max_tokens


def _positions_turn_at(config: Any) -> int | None:
    """The longest context in which rotary embeddings of the kind longrope (Phi-3, Phi-4) are those of a shorter one;
    None for other kinds. Beyond it keys computed before are wrong, and those of every neighbour in the batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [
        kind for kind in (rope, *rope.values()) if isinstance(kind, Mapping)
    ]  # some models have one a kind of layer
    return min((k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"), default=None)


def _names(module: nn.Module) -> list[tuple[str, ...]]:
    """Names of each parameter, tied ones together."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [tuple(names) for names in groups.values()]


def _replace_linears(module: nn.Module, kind: type[PackedLinear]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, kind())


def _read(folder: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineError(f"{folder} holds no *.safetensors")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(load_file(file))
    return state
