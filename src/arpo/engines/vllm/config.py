"""What a recipe says of vLLM: where it runs, where it finds weights, and what is passed on to it. Imports nothing
heavy."""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from arpo.config import Config, conflict, without_password

OWN = {  # what other keys of a recipe say, or what this engine must decide itself
    "model": "model.source",
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

    mode: Literal["in_process", "serve", "endpoints"] = "in_process"
    """`in_process`: vLLM is installed beside arpo. `serve`: servers that the run starts with `python` and ends.
    `endpoints`: servers at `urls` that you started."""

    python: str | None = None
    """Mode `serve`: the Python of the environment in which vLLM is installed. None: the one that runs arpo."""

    replicas: int = Field(default=1, ge=1)
    """Mode `serve`: servers, each with the whole model."""

    devices: tuple[str, ...] = ()
    """Mode `serve`: CUDA_VISIBLE_DEVICES of each replica, such as ["1", "2"]. None given: they see what the run
    sees."""

    urls: tuple[str, ...] = ()
    """Mode `endpoints`: such as ["http://10.0.0.2:8000"]."""

    key_env: str | None = None
    """Mode `endpoints`: the environment variable with the servers' API key."""

    top_k: int = Field(default=20, ge=1, le=1000)
    """Log-probabilities a token, from which its entropy is bounded. More: narrower, slower."""

    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes (weights, keys, values); the learner needs the rest. On a CPU `memory_gb`
    counts."""

    sleep: bool = False
    """On a GPU: give the memory back while nothing is sampled (vLLM's sleep mode, level 1: weights move to main
    memory)."""

    weights: Literal["files", "nccl", "ipc"] = "files"
    """How new weights reach vLLM. `files`: through a folder that the learner and every server see, by default in shared
    memory. `nccl`, `ipc`: by vLLM's own weight transfer, to GPUs that the learner does not use, or to the learner's own
    (CUDA IPC)."""

    transfer_s: float = Field(default=300.0, gt=0)
    """How long a server may take over new weights before it counts as lost."""

    weights_folder: str | None = None
    """Where new weights are written for vLLM, as safetensors: a folder that the learner and every server see. None:
    shared memory (/dev/shm) where it has room, else the temporary folder."""

    start_s: float = Field(default=900.0, gt=0)
    """How long a server of mode `serve` may take to start."""

    patience_s: float = Field(default=120.0, ge=0)
    """How long a request waits while no server answers, before its branch counts as lost."""

    options: dict[str, Any] = Field(default={})
    """Passed on to vLLM: engine arguments by name, such as {tensor_parallel_size: 2, enforce_eager: true}."""

    @field_validator("weights", mode="before")
    @classmethod
    def _is_no_broadcast(cls, weights: Any) -> Any:
        if weights == "broadcast":
            raise ValueError(
                "'broadcast' is gone: write nccl where vLLM has GPUs that the learner does not use, ipc where it has "
                "the learner's own, and files without GPUs"
            )
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
        if self.mode == "endpoints" and not self.urls:
            raise conflict("the mode endpoints needs urls: [http://HOST:PORT]", "mode")
        if self.mode != "endpoints" and (self.urls or self.key_env):
            raise conflict(
                f"the mode {self.mode} asks no endpoints: set mode to endpoints",
                "urls" if self.urls else "key_env",
                "mode",
            )
        if self.mode != "serve" and (self.python or self.replicas > 1 or self.devices):
            keys = {"python": self.python, "replicas": self.replicas > 1, "devices": self.devices}
            raise conflict(
                f"the mode {self.mode} starts no servers: set mode to serve", next(k for k in keys if keys[k]), "mode"
            )
        if self.devices and len(self.devices) != self.replicas:
            raise conflict(
                f"{len(self.devices)} devices for {self.replicas} replicas: give one of each", "devices", "replicas"
            )
        if self.sleep and self.mode == "endpoints":
            raise conflict(
                "servers that you started sleep only if you started them so: this is for in_process and serve",
                "sleep",
                "mode",
            )
        return self
