"""From a recipe's engine to vLLM's own arguments: one mapping for both ways of running it."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from arpo.engines.config import EngineConfig, has_fast_bf16
from arpo.engines.vllm.config import VllmConfig
from arpo.engines.vllm.forms import Form
from arpo.errors import ConfigError

BLOCK = 32  # tokens of a block of keys and values on a CPU, where vLLM's own default is 128: a fork computes less than one anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    config: EngineConfig
    vllm: VllmConfig
    vocab_size: int
    context: int  # tokens of a prompt and its turn at most
    dtype: torch.dtype
    on_gpu: bool

    @classmethod
    def of(cls, config: EngineConfig, model: Any) -> "Settings":
        """Raises ConfigError where the model cannot read what the recipe asks."""
        text = model.config.get_text_config()
        longest = int(text.max_position_embeddings)
        context = config.max_tokens_per_slot or longest
        if context > longest:
            raise ConfigError(
                "longer than the model can read", where="engine.max_tokens_per_slot", value=context, hint=f"At most {longest}"
            )
        on_gpu = torch.cuda.is_available()
        return cls(
            config=config,
            vllm=config.vllm or VllmConfig(),
            vocab_size=int(text.vocab_size),
            context=context,
            dtype=_dtype(config.dtype, on_gpu),
            on_gpu=on_gpu,
        )

    def form(self) -> Form:
        """How vLLM is reached. Raises ConfigError where it is not there."""
        from arpo.engines.vllm.process import InProcess
        from arpo.engines.vllm.versions import check_here

        check_here()
        return InProcess(self)

    def arguments(self) -> dict[str, Any]:
        """vLLM's engine arguments, without the model."""
        own: dict[str, Any] = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": self.context,
            "max_num_seqs": self.config.slots,
            "max_logprobs": self.vllm.top_k,
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
        }
        if self.on_gpu:
            own |= {"gpu_memory_utilization": self.vllm.gpu_memory_utilization, "enable_sleep_mode": self.vllm.sleep}
        else:
            own |= {"kv_cache_memory_bytes": int(self.config.memory_gb * 2**30), "block_size": BLOCK, "enforce_eager": True}
        return own | self.vllm.options

    def environment(self) -> dict[str, str]:
        """Environment variables that vLLM should find, unless the user set others."""
        wanted = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
        if not self.on_gpu:
            wanted |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
        return {name: value for name, value in wanted.items() if name not in os.environ}


def _dtype(asked: str, on_gpu: bool) -> torch.dtype:
    if asked != "auto":
        return getattr(torch, asked)  # type: ignore[no-any-return]
    fast = torch.cuda.is_bf16_supported() if on_gpu else has_fast_bf16()
    return torch.bfloat16 if fast else torch.float32
