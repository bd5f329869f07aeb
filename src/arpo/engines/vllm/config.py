"""What a recipe says of vLLM: where it runs, where it finds weights, and what is passed on to it. Imports nothing
heavy."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from arpo.config import Config, conflict, without_password

OWN = {  # what other keys of a recipe say, or what this engine must decide itself
    "model": "model.source",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_tokens_per_slot",
    "max_num_seqs": "engine.slots",
    "gpu_memory_utilization": "engine.vllm.gpu_memory_utilization",
    "kv_cache_memory_bytes": "engine.memory_gb",
    "max_logprobs": "engine.vllm.top_k",
    "logprobs_mode": None,
    "generation_config": None,  # its penalties, top_k and min_p would be another distribution than the learner's
    "override_generation_config": None,
    "logits_processors": None,
    "enable_prefix_caching": None,
    "enable_sleep_mode": "engine.vllm.sleep",
    "weight_transfer_config": "engine.vllm.weights",
}


class VllmConfig(Config):
    """Where vLLM runs and what it is told."""

    replicas: Annotated[int, Field(ge=0)] | tuple[str, ...] = 0
    """Servers that the run starts and stops, each with the whole model: their number, or the CUDA_VISIBLE_DEVICES of
    each, such as ["1", "2"]. 0: vLLM runs beside the learner in arpo's own environment, unless there are `urls`."""

    python: str | None = None
    """The Python with which servers are started: that of the environment in which vLLM is installed. None: the one that
    runs arpo."""

    urls: tuple[str, ...] = ()
    """Servers that you started, such as ["http://10.0.0.2:8000"]. Where they want a key, it is in the environment
    variable ARPO_VLLM_KEY."""

    top_k: int = Field(default=20, ge=1, le=1000)
    """Log-probabilities a token, from which its entropy is bounded. More: narrower, slower."""

    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes (weights, keys, values); the learner needs the rest. On a CPU `memory_gb`
    counts."""

    sleep: bool = False
    """On a GPU: give the memory back while nothing is sampled (vLLM's sleep mode, level 1: weights move to main
    memory)."""

    weights: str = "files"
    """How new weights reach vLLM. `files`: as safetensors in shared memory (/dev/shm) where it has room, else in the
    temporary folder; a path such as `/shared/weights`: in that folder, which the learner and every server see. `nccl`,
    `ipc`: by vLLM's own weight transfer, to GPUs that the learner does not use, or to the learner's own (CUDA IPC)."""

    lora: Literal["auto", "adapters", "merged"] = "auto"
    """What vLLM gets of a policy with LoRA. `adapters`: the adapters alone, beside which it serves the model's own
    weights; a turn keeps the version that it began with. `merged`: all weights, adapters added, which sample faster and
    take effect inside a turn. `auto`: adapters with GPUs, else merged, since vLLM's CPU build computes adapters many
    times slower."""

    options: dict[str, Any] = Field(default={})
    """Passed on to vLLM: engine arguments by name, such as {tensor_parallel_size: 2, enforce_eager: true}."""

    @field_validator("weights")
    @classmethod
    def _is_a_way(cls, weights: str) -> str:
        if weights == "broadcast":
            raise ValueError(
                "'broadcast' is gone: write nccl where vLLM has GPUs that the learner does not use, ipc where it has "
                "the learner's own, and files without GPUs"
            )
        if weights not in ("files", "nccl", "ipc") and "/" not in weights:
            raise ValueError("should be files, nccl, ipc or the path of a folder, such as ./weights")
        return weights

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not re.fullmatch(r"https?://[^/\s]+(/[^\s]*)?", url):
                raise ValueError(f"{url!r} is no URL such as http://127.0.0.1:8000")
            without_password(url)
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("every server once: twice the same one would count as two replicas")
        return tuple(url.rstrip("/").removesuffix("/v1") for url in urls)

    @field_validator("options")
    @classmethod
    def _are_not_said_elsewhere(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            plain = name.lstrip("-").replace("-", "_")
            if plain != name:
                raise ValueError(f"{name!r}: write {plain!r}, the name of vLLM's engine argument")
            if name in OWN:
                where = OWN[name]
                raise ValueError(
                    f"{name!r} is set by {where}"
                    if where
                    else f"{name!r} is not free: the engine needs its own setting"
                )
        return options

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.urls and self.replicas:
            raise conflict("the servers at urls are there: leave out replicas, which starts some", "replicas", "urls")
        if self.python and not self.replicas:
            raise conflict("no server is started: set replicas to their number", "python", "replicas")
        if self.sleep and self.urls:
            raise conflict("servers that you started sleep only if you started them so: leave it out", "sleep", "urls")
        return self

    @property
    def transfer(self) -> Literal["nccl", "ipc"] | None:
        """The backend of vLLM's weight transfer; None where weights go by files."""
        return "nccl" if self.weights == "nccl" else "ipc" if self.weights == "ipc" else None
