"""From a recipe's engine to vLLM's own arguments: one mapping for both ways of running it."""

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from arpo.engines.config import EngineConfig, has_fast_bf16
from arpo.engines.vllm.adapters import IN_BATCH, KEPT
from arpo.engines.vllm.config import VllmConfig
from arpo.engines.vllm.guard import KEY
from arpo.engines.vllm.launch import Launcher
from arpo.engines.vllm.publisher import brings_code
from arpo.engines.vllm.replica import Replica
from arpo.engines.vllm.servers import Servers
from arpo.engines.vllm.transport import Transport
from arpo.engines.vllm.weight_sender import LOOPBACK, Call, WeightSender, address_towards
from arpo.errors import ConfigError
from arpo.files import expanded

# tokens of a block of keys and values on a CPU, where vLLM's own default is 128: a fork computes less than one anew
BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    config: EngineConfig
    vllm: VllmConfig
    vocab_size: int
    context: int  # tokens of a prompt and its turn at most
    dtype: torch.dtype
    on_gpu: bool
    tied: bool  # the model's head, to its embeddings
    brings_code: bool = False  # the model does, and the recipe trusts it
    lora_rank: int | None = None  # of adapters that vLLM serves beside the model; None: it gets whole weights
    tokenizes: bool  # vLLM has the tokenizer, and can find stop strings

    @classmethod
    def of(
        cls, config: EngineConfig, model: Any, *, tokenizes: bool, on_gpu: bool, lora_rank: int | None = None
    ) -> "Settings":
        """on_gpu: whether vLLM computes on GPUs. Raises ConfigError where the model cannot read what the recipe
        asks."""
        text = model.config.get_text_config()
        longest = int(text.max_position_embeddings)
        context = config.max_tokens_per_slot or longest
        if context > longest:
            raise ConfigError(
                "longer than the model can read",
                where="engine.max_tokens_per_slot",
                value=context,
                hint=f"At most {longest}",
            )
        return cls(
            config=config,
            vllm=config.vllm or VllmConfig(),
            vocab_size=int(text.vocab_size),
            context=context,
            dtype=_dtype(config.dtype, on_gpu),
            on_gpu=on_gpu,
            tied=bool(getattr(text, "tie_word_embeddings", False) or model.config.tie_word_embeddings),
            tokenizes=tokenizes,
            brings_code=brings_code(model),
            lora_rank=lora_rank,
        )

    def form(self, tell: Callable[[str], None] = lambda text: None, launch: Any = None) -> Transport:
        """How vLLM is reached. `launch`: makes what starts servers; None: `Launcher`, on this machine. Raises
        ConfigError where vLLM is not there."""
        from arpo.engines.vllm.process import InProcess
        from arpo.engines.vllm.versions import Environment, check_here

        if self.vllm.transfer:
            self._check_can_send()
        if self.vllm.urls:
            return self._servers(self.vllm.urls, None, tell)
        if not self.vllm.replicas:
            check_here()
            return InProcess(self, tell)
        python = str(expanded(self.vllm.python)) if self.vllm.python else sys.executable
        if launch is None:
            Environment.of(python).check(python)
        replicas = self.vllm.replicas
        devices = (None,) * replicas if isinstance(replicas, int) else replicas
        launcher = (launch or Launcher)(python, self.arguments(), self.environment(), devices)
        return self._servers([server.url for server in launcher.servers], launcher, tell)

    def _check_can_send(self) -> None:
        """Raises ConfigError where this process cannot send weights by vLLM's weight transfer."""
        from arpo.engines.vllm.versions import Environment

        where, value = "engine.vllm.weights", self.vllm.weights
        if not torch.cuda.is_available():
            raise ConfigError(
                "the learner has no GPU here", where=where, value=value, hint="Without one, weights go by files"
            )
        if problem := Environment.here().problem():
            raise ConfigError(f"vLLM sends the weights, and {problem[0]}", where=where, value=value, hint=problem[1])

    def _servers(self, urls: Sequence[str], launcher: Launcher | None, tell: Callable[[str], None]) -> Servers:
        key = launcher.key if launcher else os.environ.get(KEY)
        about: dict[str, Any] = {"top_k": self.vllm.top_k, "vocab_size": self.vocab_size, "tokenizes": self.tokenizes}
        about["lora_rank"] = self.lora_rank
        replicas = [Replica(url, key=key, **about) for url in urls]
        for replica in replicas:
            host = address_towards(replica.url)
            replica.sender = self.sender(replica.transfer, replica.num_workers, host)
        sleeps = self.vllm.sleep and self.on_gpu
        return Servers(
            replicas,
            context=self.context,
            tied=self.tied and bool(self.vllm.urls),
            launcher=launcher,
            sleeps=sleeps,
            tell=tell,
        )

    @property
    def one_process(self) -> bool:
        """Whether the model runs in the core's own process, which on a CPU saves a process and its memory."""
        return not {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"} & self.vllm.options.keys()

    def sender(
        self, call: Call, num_workers: Callable[[], Awaitable[int]], host: str = LOOPBACK
    ) -> WeightSender | None:
        """What sends new weights to one vLLM; None: they go by files."""
        if not self.vllm.transfer:
            return None
        return WeightSender(self.vllm.transfer, call, num_workers, host=host)

    @property
    def unties(self) -> bool:
        """Whether vLLM must have a head that is tied to the embeddings as a matrix of its own: on a CPU it packs the
        head once, and would not notice that the embeddings were loaded anew (0.32)."""
        return not self.on_gpu or bool(self.vllm.urls)  # whose head may be untied; one that is tied passes it over

    def arguments(self) -> dict[str, Any]:
        """vLLM's engine arguments, without the model."""
        own: dict[str, Any] = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": self.context,
            "max_num_seqs": self.config.slots,
            "max_logprobs": self.vllm.top_k + 1,
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "skip_tokenizer_init": not self.tokenizes,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if self.on_gpu:
            own |= {"gpu_memory_utilization": self.vllm.gpu_memory_utilization, "enable_sleep_mode": self.vllm.sleep}
        else:
            own |= {
                "kv_cache_memory_bytes": int(self.config.memory_gb * 2**30),
                "block_size": BLOCK,
                "enforce_eager": True,
            }
            own |= {"distributed_executor_backend": "uni"} if self.one_process else {}
        if self.brings_code:
            own["trust_remote_code"] = True
        if self.lora_rank:
            own |= {"enable_lora": True, "max_lora_rank": self.lora_rank, "max_loras": IN_BATCH, "max_cpu_loras": KEPT}
        if self.vllm.transfer:
            own["weight_transfer_config"] = {"backend": self.vllm.transfer}
        return own | self.vllm.options

    def environment(self) -> dict[str, str]:
        """Environment variables that vLLM should find, unless the user set others."""
        level = (
            "WARNING" if self.vllm.replicas else "ERROR"
        )  # a server writes to a file, else it comes between our lines
        variables = {"VLLM_LOGGING_LEVEL": level, "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.lora_rank:
            variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if not self.on_gpu:
            variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
            variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if self.one_process else {}
        if (
            self.vllm.weights == "ipc"
        ):  # vLLM unpickles CUDA's handles, which come from this run alone: its servers ask for a key
            variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        return {name: value for name, value in variables.items() if name not in os.environ}


def _dtype(name: str, on_gpu: bool) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    here = torch.cuda.is_available()
    fast = (not here or torch.cuda.is_bf16_supported()) if on_gpu else has_fast_bf16()
    return torch.bfloat16 if fast else torch.float32
