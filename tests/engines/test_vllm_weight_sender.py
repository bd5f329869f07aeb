"""New weights without files, by vLLM's own weight transfer: its real objects, with a stand-in for what needs a GPU.

Where vLLM is installed: `make test-vllm`.
"""

import asyncio
import importlib.util
import threading
from types import SimpleNamespace

import pytest
import torch
from engine_contract import agrees, write
from vllm_contract import WeightsContract, build

from arpo.engines import Weights
from arpo.engines.vllm import weight_sender
from arpo.engines.vllm.settings import Settings
from arpo.engines.vllm.transport import WeightSnapshot
from arpo.engines.vllm.weight_sender import SnapshotSource, SyncClient, TransferError, WeightSender, init_info
from arpo.errors import ConfigError

VLLM = importlib.util.find_spec("vllm") is not None
TENSORS = {
    "odd": torch.randn(7).bfloat16(),
    "large": torch.randn(40, 30),
    "turned": torch.randn(6, 4).T,
    "one": torch.tensor(3.0),
}
needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM, reason="vLLM has an environment of its own: make test-vllm"),
]


def snapshot(tensors=TENSORS, version=1):
    parts = lambda: ((name, value, torch.bfloat16) for name, value in tensors.items())  # noqa: E731
    return WeightSnapshot(None, version, f"x/{version}", parts=parts, device=torch.device("cpu"))


async def two():
    return 2


@pytest.mark.parametrize("weights", ["nccl", "ipc"])
def test_without_a_gpu_weights_go_by_files(vllm_network, tokenizer, weights):
    with pytest.raises(ConfigError, match=r"the learner has no GPU here.*weights go by files"):
        build(vllm_network, tokenizer, weights=weights)


async def test_an_error_of_vllms_is_heard_while_the_sending_thread_waits():
    heard = []

    async def refuses(route, **arguments):
        raise ConfigError("no such route")

    client = SyncClient(refuses, asyncio.get_running_loop(), heard.append)
    with pytest.raises(ConfigError, match="no such route"):
        await asyncio.to_thread(client.update_weights, {"names": []})
    assert [str(error) for error in heard] == ["no such route"]


class TestAgainstVllm:
    """vLLM's trainer engines, and the types with which its workers read what they are sent."""

    pytestmark = needs_vllm

    @pytest.fixture
    def sent(self, monkeypatch):
        """What goes over the wire, where NCCL would."""
        from vllm.distributed.weight_transfer import nccl_engine

        sent = SimpleNamespace(tensors=[], ended=threading.Event(), blocks=False)
        group = SimpleNamespace(destroy=sent.ended.set)

        def broadcast(iterator, group, post_iter_func, **_):
            if sent.blocks:
                sent.ended.wait(20)
                raise RuntimeError("NCCL was aborted")
            sent.tensors.append({item[0]: post_iter_func(item) for item in iterator})

        monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: group)
        monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
        return sent

    async def test_nccl_sends_a_checkpoint_as_its_workers_read_it(self, sent):
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLWeightTransferInitInfo,
            NCCLWeightTransferUpdateInfo,
        )

        calls = []

        async def call(route, **arguments):
            calls.append((route, arguments))

        sender = WeightSender("nccl", call, two, transfer_s=20)
        await sender.join(snapshot())
        for factor in (1, 2):
            await sender.send(snapshot({name: value * factor for name, value in TENSORS.items()}))
        update = ["start_weight_update", "update_weights", "finish_weight_update"]
        assert [route for route, _ in calls] == ["init_weight_transfer_engine", *update, *update], (
            "it meets the workers once"
        )
        first = NCCLWeightTransferInitInfo(**calls[0][1]["init_info"])
        assert (first.world_size, first.rank_offset, first.packed) == (3, 1, True)
        told = NCCLWeightTransferUpdateInfo(**calls[2][1]["update_info"])
        assert told.names == list(TENSORS) and told.shapes == [list(value.shape) for value in TENSORS.values()]
        assert set(told.dtype_names) == {"bfloat16"}
        for factor, tensors in zip((1, 2), sent.tensors, strict=True):
            assert all(torch.equal(tensors[name], (TENSORS[name] * factor).bfloat16()) for name in TENSORS)
            assert all(value.is_contiguous() for value in tensors.values())
        sender.close()
        assert await asyncio.to_thread(sent.ended.wait, 600)

    async def test_what_the_workers_refuse_ends_a_transfer_that_nccl_waits_in(self, sent):
        sent.blocks = True

        async def call(route, **arguments):
            if route == "update_weights":
                raise ConfigError("the server cannot do /update_weights")

        sender = WeightSender("nccl", call, two, transfer_s=1e6)  # which a transfer that is not broken off would take
        async with asyncio.timeout(600):
            with pytest.raises((ConfigError, TransferError), match="cannot do"):
                await sender.send(snapshot())
        assert await asyncio.to_thread(sent.ended.wait, 600)

    async def test_workers_that_never_answer_are_given_up(self, sent):
        async def call(route, **arguments):
            await asyncio.sleep(100)

        with pytest.raises(TransferError, match=r"longer than 0\.5 s"):
            await WeightSender("nccl", call, two, transfer_s=0.5).send(snapshot())

    async def test_a_transfer_can_be_broken_off(self, sent):
        sent.blocks = True

        async def call(route, **arguments):
            if route == "update_weights":
                sender.close()

        sender = WeightSender("nccl", call, two, transfer_s=20)
        with pytest.raises(TransferError, match="broken off"):
            await sender.send(snapshot())

    async def test_ipc_handles_arrive_as_workers_read_them(self, monkeypatch):
        from vllm.distributed.weight_transfer import ipc_engine
        from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk

        handle = {"GPU-1": (torch.Tensor, (4,), torch.uint8, 0, b"handle")}

        def chunks(iterator, gpu_uuid, post_iter_func, buffer_size_bytes):
            assert gpu_uuid == "GPU-1" and buffer_size_bytes == weight_sender.IPC_BUFFER
            for name, value in iterator:
                yield PackedIpcChunk([name], [list(value.shape)], ["bfloat16"], [2 * value.numel()], handle)

        monkeypatch.setattr(ipc_engine, "packed_ipc_producer", chunks)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-1"))
        monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
        monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        updates, inits = [], []

        async def call(route, **arguments):
            if route == "init_weight_transfer_engine":
                inits.append(ipc_engine.IPCWeightTransferInitInfo(**arguments["init_info"]))
            if route == "update_weights":
                updates.append(ipc_engine.IPCWeightTransferUpdateInfo(**arguments["update_info"]))

        await WeightSender("ipc", call, two, transfer_s=20).send(snapshot())
        assert [each.packed for each in inits] == [True]
        assert [each.names for each in updates] == [[name] for name in TENSORS]
        assert all(each.ipc_handles == handle for each in updates)

    def test_a_tensor_larger_than_vllms_buffer_makes_it_larger(self, monkeypatch):
        monkeypatch.setattr(weight_sender, "IPC_BUFFER", 100)
        assert init_info("ipc", "127.0.0.1", 1, SnapshotSource(snapshot())).packed_buffer_size_bytes == 2 * 40 * 30

    def test_vllm_has_the_arguments_routes_and_methods_that_a_sender_calls(self):
        from pydantic import TypeAdapter
        from vllm import AsyncEngineArgs
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.entrypoints.rl.online.api_router import router
        from vllm.v1.worker.gpu_worker import Worker

        routes = {"init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"}
        assert {f"/{name}" for name in routes} | {"/get_world_size"} <= {route.path for route in router.routes}
        assert all(hasattr(Worker, name) for name in routes)
        config = AsyncEngineArgs(model="x", weight_transfer_config={"backend": "ipc"}).weight_transfer_config
        assert TypeAdapter(WeightTransferConfig).dump_python(config, mode="json") == {"backend": "ipc"}


class TestOverAStandInForNccl(WeightsContract):
    """vLLM's NCCL weight transfer on both sides, on a CPU: `cpu_nccl` stands in for NCCL itself."""

    pytestmark = needs_vllm

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, vllm_network, tokenizer):
        import cpu_nccl  # noqa: F401 - installs itself

        def unpacked(*arguments):  # vLLM packs on CUDA's streams
            info = init_info(*arguments)
            info.packed = False
            return info

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settings, "_check_can_send", lambda self: None)
            patch.setattr(weight_sender, "init_info", unpacked)

            def again():
                engine = build(
                    vllm_network, tokenizer, weights="nccl", options={"worker_extension_cls": "cpu_nccl.Extension"}
                )
                engine.again = again
                return engine

            engines = [again()]
            yield engines
            for engine in engines:
                asyncio.run(engine.close())

    async def test_no_file_is_written(self, engine, prompt, other):
        await write(engine, prompt, max_tokens=2)
        await engine.update_weights(Weights(1, other.state_dict()))
        assert not any(each.folder for each in engine.publisher._kept)

    async def test_where_a_transfer_fails_vllm_is_started_again_with_the_weights(
        self, engine, prompt, other, capfd, monkeypatch
    ):
        await write(engine, prompt, max_tokens=2)
        engine.form._sender.close()
        monkeypatch.setattr(engine.form._sender, "host", "192.0.2.1")  # of no machine
        await engine.update_weights(Weights(2, other.state_dict()))
        assert "did not reach it: nobody can be met at 192.0.2.1" in capfd.readouterr().err
        turn = await write(engine, prompt, max_tokens=20, seed=1)
        assert {chunk.version for chunk in turn.chunks} == {2}
        agrees(other, prompt, turn)
