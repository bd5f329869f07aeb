"""Which engine a run samples with, and what it may use of the machine.

Imports nothing heavy: a recipe that names an engine is read in milliseconds.
"""

import platform
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from arpo.config import Config, conflict
from arpo.endpoint.config import EndpointConfig
from arpo.engines.vllm.config import VllmConfig

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@lru_cache(maxsize=1)
def has_fast_bf16() -> bool:
    """True where this CPU multiplies bfloat16 faster than float32 (AVX-512 BF16, AMX or ARM's BF16 instructions).

    Read from the kernel's list of CPU flags. macOS has no such list: there it is False, because torch's bfloat16
    products on Apple's cores are slower than its float32 ones.
    """
    if platform.system() != "Linux":
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return names_fast_bf16(text)


def names_fast_bf16(cpuinfo: str) -> bool:
    """Whether the text of a `/proc/cpuinfo` lists bfloat16 instructions (x86: flags, ARM: Features)."""
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags.update(value.split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


class EngineConfig(Config):
    """What writes the turns."""

    kind: str = "local"
    """`local`; `vllm`; `openai`: the model at `endpoint`, for evaluation alone; or the import path
    (`package.module:name`) of an engine factory called with this config, model and tokenizer."""

    endpoint: EndpointConfig | None = None
    """The endpoint of the kind `openai`."""

    vllm: VllmConfig | None = None
    """Where the kind `vllm` runs and what it is told; null: its defaults."""

    dtype: Dtype = "auto"
    """Numbers the engine computes in. `auto`: bfloat16 where the device has fast bfloat16; on other x86 CPUs the engine
    local keeps float16 weights and computes in float32; else float32."""

    deterministic: bool = False
    """Bit-equal results whatever the timing: float32, one request a forward, nothing evicted. Slow by design."""

    slots: int = Field(default=64, ge=1)
    """Turns that are sampled at the same time; further ones wait."""

    max_tokens_per_slot: int | None = Field(default=None, ge=2)
    """Longest context with its turn, in tokens. None: the model's own limit."""

    memory_gb: float = Field(default=4.0, gt=0)
    """Most memory for keys and values, in GiB. It is taken as needed, not at the start."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in ("local", "vllm", "openai") and ":" not in kind:
            raise ValueError("must be 'local', 'vllm', 'openai' or an import path such as 'my_package.engines:build'")
        return kind

    @model_validator(mode="after")
    def _has_its_endpoint(self) -> Self:
        if self.kind == "openai" and self.endpoint is None:
            raise conflict(
                "the engine openai needs an endpoint: {url: http://HOST/v1, model: NAME, key_env: VARIABLE}", "kind"
            )
        if self.kind == "local" and self.endpoint is not None:
            raise conflict("the engine local asks no endpoint: set kind to openai", "endpoint", "kind")
        if self.kind in ("local", "openai") and self.vllm is not None:
            raise conflict(f"the engine {self.kind} is not vLLM: set kind to vllm", "vllm", "kind")
        if self.kind == "vllm" and self.deterministic:
            raise conflict(
                "vLLM's tokens depend on their neighbours in the batch: only the engine local is deterministic",
                "deterministic",
            )
        return self
