"""One vLLM server over HTTP: token ids in, token ids with log-probabilities out, and its weights.

Knows vLLM's native routes (`--enable-scale-out`: /inference/v1/generate; VLLM_SERVER_DEV_MODE=1: /pause,
/collective_rpc, ...). Refuses to know other servers.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx

from arpo.engines import SamplingParams
from arpo.engines.vllm import answers, plain_answers
from arpo.engines.vllm.adapters import IN_BATCH, KEPT, AdapterError
from arpo.engines.vllm.answers import AnswerError, Piece
from arpo.engines.vllm.publisher import PREFIX
from arpo.engines.vllm.transport import WeightSnapshot, sampling_arguments
from arpo.engines.vllm.weight_sender import TransferError, WeightSender
from arpo.errors import ConfigError, EngineError

KEEP = {"mode": "keep", "clear_cache": "false"}  # of requests in flight
HEALTH_S = 10.0  # an answer about its health that takes longer is none
ABOUT_S = 120.0  # about its settings: vLLM collects them anew, which takes long beside servers that are starting
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=256)
NEEDED = (
    "VLLM_SERVER_DEV_MODE=1 and the flags --enable-scale-out --enable-prompt-tokens-details "
    "--logprobs-mode processed_logprobs"
)


class LostError(Exception):
    """The server did not answer, or broke off: another one may."""


class Replica:
    """`version` is that of its weights, and `loads` counts how often that was said anew. `live` counts its requests.
    `compact`: it answers with arrays (`arpo.engines.vllm.answers`), else with JSON. top_k: log-probabilities a token.
    vocab_size: tokens of the model. tokenizes: the server has the model's tokenizer, and so finds stop strings.
    lora_rank: of adapters that it has to serve. `adapter`: the name of those that new requests are written with."""

    def __init__(
        self,
        url: str,
        *,
        top_k: int,
        vocab_size: int,
        key: str | None = None,
        tokenizes: bool = True,
        lora_rank: int | None = None,
    ) -> None:
        self.url, self.top_k, self.vocab_size, self.tokenizes = url, top_k, vocab_size, tokenizes
        self.compact, self.lora_rank = False, lora_rank
        self.adapter: str | None = None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(None, connect=HEALTH_S)
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=LIMITS, trust_env=False)
        self.up = False
        self.version = 0
        self.live = 0
        self.loads = 0
        self.sender: WeightSender | None = None  # through which weights come, where not through files
        self.why = ""  # it was taken out
        self.bringing = asyncio.Lock()  # one change of weights at a time
        self._asking: set[asyncio.Task[httpx.Response]] = set()  # what it has not begun to answer
        self._answers: set[httpx.Response] = set()

    def move(self, url: str) -> None:
        """It is at `url` from now on."""
        self.url = self.client.base_url = url

    async def ask(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        """Sample after `prompt`. Raises LostError, and EngineError for a request that the server refuses."""
        self.live += 1
        loads, adapter, version, response = self.loads, self.adapter, self.version, None
        sampling = sampling_arguments(params, tokenizes=self.tokenizes)
        try:
            if self.compact:
                body = answers.request_body(prompt, sampling, top_k=self.top_k, head=params.head, adapter=adapter)
                request = self.client.build_request("POST", answers.ROUTE, content=body)
            else:
                asked = plain_answers.request_of(prompt, sampling, top_k=self.top_k, head=params.head, adapter=adapter)
                request = self.client.build_request("POST", plain_answers.ROUTE, json=asked)
            response = await self._unless_dropped(self.client.send(request, stream=True))
            self._answers.add(response)
            await _check(response)
            if self.compact:
                stream = answers.read_frames(response.aiter_raw())
            else:
                stream = plain_answers.read_events(
                    response.aiter_lines(),
                    lambda: version if adapter or self.loads == loads else None,
                    adapter=adapter,
                    top_k=self.top_k,
                    vocab_size=self.vocab_size,
                )
            async for piece in stream:
                yield piece
                if piece.finish is not None:
                    return
            raise LostError("the answer broke off")
        except (httpx.HTTPError, httpx.StreamError, json.JSONDecodeError, AnswerError) as error:
            raise LostError(_named(error)) from error
        finally:
            self.live -= 1
            if response is not None:
                self._answers.discard(response)
                await response.aclose()

    async def publish(self, published: WeightSnapshot) -> None:
        """Load weights; requests in flight go on with them, and read their context anew, but those of adapters end with
        what they began with. Raises LostError; ConfigError where the server answers and cannot. It stays paused then:
        what it holds may be half old, half new. Raises AdapterError where it refuses adapters."""
        if published.base is not None:
            await self._publish_adapters(published, published.base)
            return
        self.adapter = None
        sender = self.sender if published.parts is not None else None
        folder = await published.written() if sender is None else None
        await self._post("/pause", params=KEEP)
        if sender is None:
            await self._post(
                "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            )
        else:
            try:
                await sender.send(published)
            except TransferError as error:
                raise LostError(str(error)) from error
        await self._post("/reset_prefix_cache", params={"reset_running_requests": "true"})
        await self.name(published)
        await self.resume()

    async def _publish_adapters(self, published: WeightSnapshot, base: WeightSnapshot) -> None:
        if not await self.holds(base):
            await self.publish(base)
        asked = {"lora_name": published.label, "lora_path": str(await published.written())}
        try:
            await self._post("/v1/load_lora_adapter", json=asked)
        except ConfigError as error:
            raise AdapterError(f"the server at {self.url} refuses them: {error}") from error
        self.adapter, self.version = published.label, published.version

    async def resume(self) -> None:
        """Write on. One that is not paused does not mind."""
        await self._post("/resume")

    async def transfer(self, route: str, **arguments: Any) -> None:
        """Call a route of vLLM's weight transfer."""
        await self._post(f"/{route}", json=arguments)

    async def num_workers(self) -> int:
        """Processes that hold a part of the model."""
        return int((await self._get("/get_world_size")).json()["world_size"])

    async def join(self, published: WeightSnapshot) -> None:
        """Where weights come without files: meet the workers. Raises LostError."""
        if self.sender is not None and published.base is None:
            try:
                await self.sender.join(published)
            except TransferError as error:
                raise LostError(str(error)) from error

    async def name(self, published: WeightSnapshot) -> None:
        """Say that the weights it has are `published`."""
        await self._post("/update_weight_version", json={"new_version": published.label})
        self.version = published.version
        self.loads += 1

    async def check(self, context: int, *, tied: bool) -> None:
        """Raises ConfigError where the server is set otherwise than the engine needs, LostError where it does not
        answer. tied: the model has its head tied to its embeddings."""
        config = (await self._get("/server_info", config_format="json")).json()["vllm_config"]
        model = config["model_config"]
        if self.lora_rank and (served := (config.get("lora_config") or {}).get("max_lora_rank", 0)) < self.lora_rank:
            flags = f"--enable-lora --max-lora-rank {self.lora_rank} --max-loras {IN_BATCH} --max-cpu-loras {KEPT}"
            why = f"serves adapters of rank {served} at most" if served else "serves none"
            raise AdapterError(f"the server at {self.url} {why}; start it with {flags} (docs/vllm.md)")
        if (
            self.sender is not None
            and (config.get("weight_transfer_config") or {}).get("backend") != self.sender.backend
        ):
            flag = f"""--weight-transfer-config '{{"backend": "{self.sender.backend}"}}'"""
            raise ConfigError(
                f"the server at {self.url} does not take weights by {self.sender.backend}",
                where="engine.vllm.weights",
                value=self.sender.backend,
                hint=f"Start it with {flag} (docs/vllm.md), or set engine.vllm.weights to files",
            )
        self.compact = await self._is_compact()
        if processors := model.get("logits_processors"):
            what = f"the server at {self.url} changes the distribution that tokens are drawn from"
            raise ConfigError(
                what, where="engine.vllm.urls", value=processors, hint="Start it without --logits-processors"
            )
        wrong = {
            "--logprobs-mode": (
                model["logprobs_mode"],
                "processed_logprobs",
                model["logprobs_mode"] != "processed_logprobs",
            ),
            "--max-logprobs": (model["max_logprobs"], self.top_k + 1, 0 <= model["max_logprobs"] <= self.top_k),
            "--max-model-len": (model["max_model_len"], context, model["max_model_len"] < context),
        }
        for flag, (has, needed, is_wrong) in wrong.items():
            if is_wrong:
                what = f"the server at {self.url} has {flag} {has}, and the recipe needs {needed}"
                raise ConfigError(what, where="engine.vllm.urls", hint=f"Start it with {flag} {needed}")
        if tied and "cpu" in str(config["device_config"]["device"]) and _ties(Path(model["model"])):
            raise ConfigError(
                f"the server at {self.url} ties the model's head to its embeddings, which vLLM cannot load anew "
                "on a CPU",
                where="engine.vllm.urls",
                value="endpoints",
                hint="Let the run start it: engine.vllm.replicas",
            )

    async def _is_compact(self) -> bool:
        try:
            response = await self.client.get(answers.ROUTE, timeout=HEALTH_S)
            return response.status_code == 200 and response.json().get("form") == answers.FORM
        except httpx.HTTPError as error:
            raise LostError(_named(error)) from error

    async def holds(self, published: WeightSnapshot) -> bool:
        """Whether its weights are `published`, also after it was started anew. Raises LostError."""
        if published.base is not None:
            loaded = [model["id"] for model in (await self._get("/v1/models")).json()["data"]]
            return self.adapter == published.label and published.label in loaded and await self.holds(published.base)
        return bool((await self._get("/weight_info")).json()["weight_version"] == published.label)

    async def healthy(self) -> bool:
        try:
            return (await self.client.get("/health", timeout=HEALTH_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def sleep(self) -> None:
        await self._post("/sleep", params={"level": "1"})

    async def wake(self) -> None:
        await self._post("/wake_up")

    async def drop(self) -> None:
        """It is down: end what still waits for its answers."""
        self.up = False
        if self.sender is not None:
            self.sender.close()
        for asking in self._asking:
            asking.cancel()
        for response in list(self._answers):
            await response.aclose()

    async def close(self) -> None:
        await self.drop()
        await self.client.aclose()

    async def _unless_dropped(self, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        """The answer that `asked` waits for. Raises LostError as soon as this server is taken out."""
        asking = asyncio.create_task(request)
        self._asking.add(asking)
        try:
            await asyncio.wait({asking})
            if asking.cancelled():
                raise LostError(self.why or "it was taken out")
            return asking.result()
        finally:
            asking.cancel()  # whoever waits here was cancelled
            self._asking.discard(asking)

    async def _get(self, path: str, **params: str) -> httpx.Response:
        try:
            timeout = ABOUT_S if path == "/server_info" else HEALTH_S
            response = await self.client.get(path, params=params, timeout=timeout)
        except httpx.HTTPError as error:
            raise LostError(_named(error)) from error
        if response.status_code == 404:
            raise ConfigError(
                f"the server at {self.url} has no {path}", where="engine.vllm.urls", hint=f"Start it with {NEEDED}"
            )
        if response.status_code >= 400:
            raise LostError(f"{path}: {response.status_code}")
        return response

    async def _post(self, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = await self._unless_dropped(self.client.post(path, **arguments))
        except httpx.HTTPError as error:
            raise LostError(_named(error)) from error
        if response.status_code == 404:
            raise ConfigError(
                f"the server at {self.url} has no {path}", where="engine.vllm.urls", hint=f"Start it with {NEEDED}"
            )
        if response.status_code >= 400:
            raise ConfigError(
                f"the server at {self.url} cannot do {path} ({response.status_code}: {response.text[:200]})",
                where="engine.vllm",
                hint="Its log says more. Weights must lie in a folder that it sees: engine.vllm.weights",
            )
        return response


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")  # time-outs say nothing


async def _check(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    text = (await response.aread()).decode(errors="replace")[:300]
    if response.status_code == 404:
        raise ConfigError(
            f"the server at {response.url} has no such route", where="engine.vllm.urls", hint=f"Start it with {NEEDED}"
        )
    if response.status_code in (401, 403):
        raise ConfigError(f"the server at {response.url} refuses the key in $ARPO_VLLM_KEY", where="engine.vllm.urls")
    if response.status_code in (400, 413, 422):
        raise EngineError(f"the server refuses the request ({response.status_code}): {text}")
    raise LostError(f"{response.status_code}: {text}")


def _ties(folder: Path) -> bool:
    """Whether a server that was started with `folder` has the head tied: what its config says, if it can be read
    here."""
    if any(part.startswith(PREFIX) for part in folder.parts):
        return False  # another run's own server, whose first folder may be gone
    try:
        return bool(json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True))
    except (OSError, ValueError):
        return True
