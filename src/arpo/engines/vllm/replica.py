"""One vLLM server over HTTP: token ids in, token ids with log-probabilities out, and its weights.

Knows vLLM's native routes (`--enable-scale-out`: /inference/v1/generate; VLLM_SERVER_DEV_MODE=1: /pause,
/collective_rpc, ...). Refuses to know other servers.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from arpo.engines import SamplingParams
from arpo.engines.vllm.publisher import PREFIX
from arpo.engines.vllm.transport import Piece, WeightSnapshot
from arpo.engines.vllm.weight_sender import TransferError, WeightSender
from arpo.errors import ConfigError, EngineError

EVERY = 4  # tokens an event: fewer events for a server to write and us to read; a head comes at most three tokens late
KEEP = {"mode": "keep", "clear_cache": "false"}  # of requests in flight
HEALTH_S = 10.0  # an answer about its health that takes longer is none
ABOUT_S = 120.0  # about its settings: vLLM collects them anew, which takes long beside servers that are starting
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=256)
NEEDED = (
    "VLLM_SERVER_DEV_MODE=1 and the flags --enable-scale-out --enable-prompt-tokens-details "
    "--logprobs-mode processed_logprobs"
)

UNCHANGED: Mapping[str, float] = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sent with every request: a server may have other defaults, from the model's generation_config."""


class LostError(Exception):
    """The server did not answer, or broke off: another one may."""


class Replica:
    """`version` is that of its weights, and `loads` counts how often that was said anew. `live` counts its requests.
    top_k: log-probabilities a token. tokenizes: the server has the model's tokenizer, and so finds stop strings."""

    def __init__(self, url: str, *, top_k: int, key: str | None = None, tokenizes: bool = True) -> None:
        self.url, self.top_k, self.tokenizes = url, top_k, tokenizes
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

    async def ask(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        """Sample after `prompt`. Raises LostError, and EngineError for a request that the server refuses."""
        self.live += 1
        loads, response = self.loads, None
        try:
            request = self.client.build_request("POST", "/inference/v1/generate", json=self._asked(prompt, params))
            response = await self._unless_dropped(self.client.send(request, stream=True))
            self._answers.add(response)
            await _check(response)
            num_tokens, held = 0, list[Piece]()
            last: Piece | None = None
            spans: Sequence[Mapping[str, Any]] = ()
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise LostError(str(event["error"].get("message", event["error"])))
                for choice in event["choices"]:
                    piece = self._piece(choice)
                    if piece.finish is not None:
                        last, spans = piece, choice.get("weight_versions") or []
                    elif self.loads == loads:  # the server waits with new weights until they have their name here
                        num_tokens += len(piece.tokens)
                        yield piece
                    else:  # which weights wrote these, the server says at the end
                        held.append(piece)
                if last is not None and event.get("usage"):
                    for piece in _by_version([*held, _with_cached(last, event["usage"])], num_tokens, spans):
                        yield piece
                    return
            raise LostError("the answer broke off")
        except (httpx.HTTPError, httpx.StreamError, json.JSONDecodeError) as error:
            raise LostError(_named(error)) from error
        finally:
            self.live -= 1
            if response is not None:
                self._answers.discard(response)
                await response.aclose()

    async def publish(self, published: WeightSnapshot) -> None:
        """Load weights; requests in flight go on with them, and read their context anew. Raises LostError; ConfigError
        where the server answers and cannot. It stays paused then: what it holds may be half old, half new."""
        folder = await published.written() if self.sender is None else None
        await self._post("/pause", params=KEEP)
        if self.sender is None:
            await self._post(
                "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            )
        else:
            try:
                await self.sender.send(published)
            except TransferError as error:
                raise LostError(str(error)) from error
        await self._post("/reset_prefix_cache", params={"reset_running_requests": "true"})
        await self.name(published)
        await self.resume()

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
        if self.sender is not None:
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

    async def holds(self, published: WeightSnapshot) -> bool:
        """Whether its weights are `published`, also after it was started anew. Raises LostError."""
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

    def _asked(self, prompt: Sequence[int], params: SamplingParams) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            **UNCHANGED,
            "stop_token_ids": list(params.stop_tokens),
            "ignore_eos": True,  # a turn ends where its request says
            "logprobs": self.top_k
            + 1,  # cut to so many with the sampled token first, which may be none of the likeliest
            "stream_interval": EVERY,
            "detokenize": False,
        }
        if params.temperature > 0:
            sampling["seed"] = params.seed
        if params.stop and self.tokenizes:  # it ends the request itself; where exactly the turn ends is found here
            sampling |= {"stop": list(params.stop), "detokenize": True, "skip_special_tokens": False}
            sampling |= {"spaces_between_special_tokens": False}
        return {
            "token_ids": list(prompt),
            "sampling_params": sampling,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _piece(self, choice: Mapping[str, Any]) -> Piece:
        if choice["finish_reason"] not in (None, "stop", "length"):
            raise LostError(f"the server ended the request: {choice['finish_reason']}")
        content = (choice["logprobs"] or {}).get("content") or []
        rows = [
            sorted((top["logprob"] for top in entry["top_logprobs"]), reverse=True)[: self.top_k] for entry in content
        ]
        return Piece(
            tokens=choice["token_ids"],
            logprobs=[entry["logprob"] for entry in content],
            top_NK=np.asarray(rows, dtype=np.float64).reshape(len(rows), -1) if rows else np.empty((0, self.top_k)),
            version=self.version,
            finish=choice["finish_reason"],
        )


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


def _by_version(pieces: Sequence[Piece], start: int, spans: Sequence[Mapping[str, Any]]) -> Iterator[Piece]:
    """`pieces`, the first of which begins at token `start` of its turn, cut where the weights changed: `spans` is
    vLLM's list of labels with the tokens that they wrote, which end in the version (see `WeightSnapshot`)."""
    for piece in pieces:
        end = start + len(piece.tokens)
        marks = sorted({start, end, *(int(span["start"]) for span in spans if start < int(span["start"]) < end)})
        for low, high in pairwise(marks):
            label = next((str(span["version"]) for span in spans if int(span["start"]) <= low < int(span["end"])), "")
            number = label.rpartition("/")[2]
            part = slice(low - start, high - start)
            yield replace(
                piece,
                tokens=piece.tokens[part],
                logprobs=piece.logprobs[part],
                top_NK=piece.top_NK[part],
                version=int(number) if number.isdigit() else piece.version,
                finish=piece.finish if high == end else None,
            )
        if len(marks) < 2:
            yield piece
        start = end


def _with_cached(piece: Piece, usage: Mapping[str, Any]) -> Piece:
    return replace(piece, cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))
