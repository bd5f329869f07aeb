"""What the driver of vLLM's servers does where they hang, die or change their weights at a bad moment: played by a
server of the same routes whose moments a test chooses."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from engine_contract import until

from arpo.engines import SamplingParams
from arpo.engines.vllm import servers
from arpo.engines.vllm.publisher import Publisher
from arpo.engines.vllm.replica import LostError, Replica
from arpo.engines.vllm.servers import Servers
from arpo.engines.vllm.transport import WeightSnapshot

SETTINGS = {
    "model_config": {"logprobs_mode": "processed_logprobs", "max_logprobs": 9, "max_model_len": 100, "model": "x"},
    "parallel_config": {"worker_extension_cls": ""},
    "device_config": {"device": "cuda"},
}


class Played:
    """vLLM's server, as far as its routes go. `at`: what it does before it answers a route, by path; `asked`: paths, in
    order."""

    def __init__(self):
        self.at, self.asked, self.label, self.paused, self.asleep, self.url = {}, [], "", False, False, ""
        self.go_on = asyncio.Event()

    async def serve(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError, EOFError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            sizes = [line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("content-length")]
            body = await reader.readexactly(int(sizes[0])) if sizes else b""
            path = urlsplit(head.split()[1]).path
            self.asked.append(path)
            if path in self.at:
                await self.at[path]()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n")
            if path == "/inference/v1/generate":
                async for event in self.generate(json.loads(body)):
                    writer.write(f"data: {json.dumps(event)}\n\n".encode())
                    await writer.drain()
            else:
                writer.write(json.dumps(self.answer(path, body)).encode())
            await writer.drain()
        writer.close()

    def answer(self, path, body):
        self.paused = {"/pause": True, "/resume": False, "/wake_up": False}.get(path, self.paused)
        self.asleep = {"/sleep": True, "/wake_up": False}.get(path, self.asleep)
        if path == "/update_weight_version":
            self.label = json.loads(body)["new_version"]
        return {"weight_version": self.label, "vllm_config": SETTINGS, "results": [None]}

    async def generate(self, request):
        await until(lambda: not (self.paused or self.asleep))
        count = request["sampling_params"]["max_tokens"]
        yield event_of(list(range(count)), finish="length", spans=[(self.label, 0, count)])


def event_of(tokens, *, finish=None, spans=()):
    content = [{"logprob": -1.0, "top_logprobs": [{"logprob": -1.0}] * 3} for _ in tokens]
    versions = [{"version": label, "start": start, "end": end} for label, start, end in spans]
    choice = {
        "token_ids": tokens,
        "logprobs": {"content": content},
        "finish_reason": finish,
        "weight_versions": versions,
    }
    return {"choices": [choice], "usage": {"prompt_tokens_details": {"cached_tokens": 0}} if finish else None}


@asynccontextmanager
async def playing(*played):
    running = [await asyncio.start_server(one.serve, "127.0.0.1", 0) for one in played]
    for one, server in zip(played, running, strict=True):
        one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield [Replica(one.url, top_k=2, vocab_size=9) for one in played]
    finally:
        for server in running:
            server.close()


def weights(version):
    return WeightSnapshot(Path("/weights"), version, f"run/{version}")


@asynccontextmanager
async def driven(replicas, **said):
    form = Servers(replicas, **{"context": 100, "patience_s": 20} | said)
    transfer_s, form.transfer_s = said.get("transfer_s", 5.0), 100.0
    await form.update_weights(weights(1))
    form.transfer_s = transfer_s
    try:
        yield form
    finally:
        await form.close()


async def turn(stream):
    return [piece async for piece in stream]


async def forever():
    await asyncio.sleep(1000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(servers, "LOOK_S", 0.05)
    monkeypatch.setattr(servers, "MISSED", 1)
    monkeypatch.setattr("arpo.engines.vllm.replica.HEALTH_S", 2.0)


@pytest.mark.parametrize("headers_too", [False, True])
async def test_tokens_of_a_request_that_begins_while_weights_change_carry_what_wrote_them(headers_too):
    """It wrote two tokens before the pause held it, which the server sends with the first two of the new weights."""
    played = Played()

    async def loaded():
        played.go_on.set()
        await until(lambda: played.label == "run/2" and not played.paused)

    async def generate(request):
        await loaded()
        yield event_of([1, 2, 3, 4])
        yield event_of([5, 6], finish="length", spans=[("run/1", 0, 2), ("run/2", 2, 6)])

    async def begin():
        nonlocal writing
        writing = asyncio.create_task(turn(replica.ask([1], SamplingParams(max_tokens=6))))
        await played.go_on.wait()

    writing = None
    async with playing(played) as (replica,):
        await replica.name(weights(1))
        played.generate, played.at["/pause"] = generate, begin
        if headers_too:
            played.at["/inference/v1/generate"] = loaded
        await replica.publish(weights(2))
        written = [(token, piece.version) for piece in await writing for token in piece.tokens]
        assert written == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]
        await replica.close()


async def test_a_request_that_a_hanging_server_never_began_goes_elsewhere():
    hung, well = Played(), Played()
    async with playing(hung, well) as replicas, driven(replicas) as form:
        hung.at["/inference/v1/generate"] = hung.at["/health"] = forever
        asked = [turn(form.stream([1], SamplingParams(max_tokens=3, tree=name))) for name in "abcd"]
        turns = await asyncio.wait_for(asyncio.gather(*asked), 10)
        assert all(len(pieces[-1].tokens) == 3 for pieces in turns)
        assert not replicas[0].up and replicas[1].up and not replicas[0].live


@pytest.mark.parametrize(
    ("path", "healthy"),
    [
        ("/pause", True),
        ("/collective_rpc", True),
        ("/reset_prefix_cache", True),
        ("/resume", True),
        ("/collective_rpc", False),
    ],
)
async def test_a_server_that_hangs_over_new_weights_holds_up_nobody_and_comes_back_with_them(path, healthy):
    hung, well = Played(), Played()
    async with playing(hung, well) as replicas, driven(replicas, transfer_s=1.0 if healthy else 100.0) as form:
        hung.at = {path: forever} | ({} if healthy else {"/health": forever})
        await asyncio.wait_for(form.update_weights(weights(2)), 10)
        assert not replicas[0].up and replicas[1].up and well.label == "run/2"
        assert "new weights took longer" in replicas[0].why or not healthy
        hung.at = {}
        await until(lambda: replicas[0].up)
        assert hung.label == "run/2" and not hung.paused
        replicas[1].up = False
        pieces = await asyncio.wait_for(turn(form.stream([1], SamplingParams(max_tokens=3))), 10)
        assert [piece.version for piece in pieces] == [2]


async def test_the_only_server_may_be_lost_over_new_weights():
    hung = Played()
    async with playing(hung) as replicas, driven(replicas, transfer_s=0.5) as form:
        hung.at = {"/collective_rpc": forever}
        await form.update_weights(weights(2))
        assert not replicas[0].up
        writing = asyncio.create_task(turn(form.stream([1], SamplingParams(max_tokens=3))))
        await asyncio.sleep(0.05)
        hung.at = {}
        assert [piece.version for piece in await asyncio.wait_for(writing, 10)] == [2]


async def test_a_load_that_is_cancelled_leaves_no_server_paused():
    slow = Played()
    async with playing(slow) as replicas, driven(replicas) as form:
        slow.at = {"/collective_rpc": forever}
        loading = asyncio.create_task(form.update_weights(weights(2)))
        await until(lambda: "/collective_rpc" in slow.asked and slow.paused)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        slow.at = {}
        pieces = await asyncio.wait_for(turn(form.stream([1], SamplingParams(max_tokens=3))), 10)
        assert [piece.version for piece in pieces] == [2] and replicas[0].up


class Starting:
    """Of a `Launcher` what starts a server anew: this one takes until `played` is told to answer."""

    def __init__(self, played):
        self.played, self.read = played, None

    async def start(self, folder):
        self.read = folder

    async def revive(self, url, folder):
        if self.read is None:
            self.read = await folder()
            return url
        return None

    async def stop(self):
        pass


async def test_the_folder_from_which_a_server_starts_stays_until_it_has(tmp_path, make_model):
    model, played = make_model("llama"), Played()
    publisher = Publisher(model, folder=tmp_path)

    async def load(version):
        published = publisher.write(model.state_dict(), version)
        await form.update_weights(published)
        publisher.keep_only(published)
        return published.folder

    async def refuse():
        raise ConnectionError

    async with playing(played) as replicas:
        starting = Starting(played)
        form = Servers(replicas, context=100, patience_s=20, transfer_s=5.0, launcher=starting)
        folders = [await load(0)]
        played.at, starting.read = {"/health": refuse, "/weight_info": refuse, "/pause": refuse}, None
        await replicas[0].drop()
        await until(lambda: starting.read is not None)
        folders += [await load(version) for version in (1, 2)]
        assert [folder.exists() for folder in folders] == [
            starting.read == folder or folder == folders[-1] for folder in folders
        ]
        assert starting.read == folders[0]
        played.at = {}
        await until(lambda: replicas[0].up)
        folders.append(await load(3))
        assert [folder.exists() for folder in folders] == [False, False, False, True]
        await form.close()
        publisher.close()


async def test_a_server_that_is_brought_back_in_vain_leaves_the_others_watched():
    hung, well = Played(), Played()
    async with playing(hung, well) as replicas, driven(replicas, transfer_s=100.0):
        await replicas[0].drop()
        hung.label, hung.at["/collective_rpc"] = "", forever
        await until(lambda: "/collective_rpc" in hung.asked)
        well.at["/health"] = forever
        await until(lambda: not replicas[1].up)


async def test_a_server_that_dies_while_the_others_sleep_is_lost_alone():
    died, well = Played(), Played()
    async with playing(died, well) as replicas, driven(replicas, sleeps=True) as form:

        async def break_off():
            raise ConnectionError

        died.at = dict.fromkeys(("/sleep", "/wake_up", "/health"), break_off)
        await form.sleep()
        assert well.asleep and not replicas[0].up
        await form.update_weights(weights(2))
        assert not well.asleep and well.label == "run/2"
        died.at, died.asleep, died.label = {}, True, "run/2"
        await until(lambda: replicas[0].up)
        assert not died.asleep, "it had gone to sleep before it was lost"


async def test_a_request_that_comes_while_servers_fall_asleep_wakes_them():
    played = Played()
    async with playing(played) as replicas, driven(replicas, sleeps=True) as form:
        played.at["/sleep"] = played.go_on.wait
        resting = asyncio.create_task(form.sleep())
        await until(lambda: "/sleep" in played.asked)
        writing = asyncio.create_task(turn(form.stream([1], SamplingParams(max_tokens=3))))
        await asyncio.sleep(0.05)
        assert "/inference/v1/generate" not in played.asked
        played.go_on.set()
        await resting
        assert len((await asyncio.wait_for(writing, 10))[-1].tokens) == 3


async def test_what_a_server_cannot_do_is_lost_with_its_reason():
    played = Played()
    async with playing(played) as (replica,):

        async def break_off():
            raise ConnectionError

        played.at["/collective_rpc"] = break_off
        with pytest.raises(LostError, match="RemoteProtocolError"):
            await replica.publish(weights(2))
        assert played.paused, "what it holds may be half old, half new"
        await replica.close()
