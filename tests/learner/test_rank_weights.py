"""Weights of N ranks: saved and taken up by any number, read and sent without any process that holds them whole."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_ranks import CASES, OPTIM, parameters, small, trees_of

from arpo.engines.vllm.publisher import Publisher
from arpo.learner.config import OptimConfig
from arpo.learner.driver import GatheredWeights, LearnerDriver
from arpo.learner.lora import full_state
from arpo.learner.rank import ModelSource, Rank
from arpo.learner.ranks import OneRank, Ranks
from arpo.learner.sharding import Placement
from arpo.models.loading import LoraSettings, ModelConfig, learner_model, load_model, with_lora
from rank_processes import Peak, SteadyRank, on_ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo ranks are forked from a server")


# --- checkpoints


def saved(ranks: Ranks, model: dict[str, Any], folder: Path, optim: OptimConfig = OPTIM) -> dict[str, torch.Tensor]:
    """Train two steps, save, train a third: the parameters after it."""
    learner = started(ranks, model, optim)
    for step in range(2):
        learner.update(trees_of(CASES["full"], step))
    write = learner.snapshot()
    learner.update(trees_of(CASES["full"], 2))
    write(folder)  # what it was before that update
    return parameters(learner)


def loaded(ranks: Ranks, model: dict[str, Any], folder: Path, optim: OptimConfig = OPTIM) -> dict[str, torch.Tensor]:
    """Take up what was saved, train the third step."""
    learner = started(ranks, model, optim, folder / "model")
    learner.load(folder)
    assert learner.updates == 2
    learner.update(trees_of(CASES["full"], 2))
    return parameters(learner)


def started(ranks: Ranks, model: dict[str, Any], optim: OptimConfig, weights: Path | None = None) -> LearnerDriver:
    settings = replace(CASES["full"].settings, optim=optim)
    ranks.call("hold", ModelSource(partial(small_from, model, weights)), 0, Placement())
    ranks.call("start", settings, None)
    return LearnerDriver(ranks, settings, num_updates=9, token_budget=60)


def small_from(model: dict[str, Any], weights: Path | None) -> Any:
    if weights is None:
        return small(**model)
    if model.get("lora"):
        return with_lora(small(**{**model, "lora": False}), LoraSettings(rank=4), weights).train()
    return transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).train()


def here(drive: Callable[[Ranks], Any], size: int, folder: Path) -> Any:
    return drive(OneRank(SteadyRank())) if size == 1 else on_ranks(size, drive, folder)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ({}, [1, 2]),
        pytest.param({"family": "Llama", "tied": True}, [1, 2, 4], marks=pytest.mark.slow),
        pytest.param({"lora": True}, [1, 2, 4], marks=pytest.mark.slow),
    ],
    ids=["full", "tied", "lora"],
)  # fmt: skip
def test_what_some_ranks_save_others_take_up(model: dict[str, Any], sizes: list[int], tmp_path: Path) -> None:
    folders = {size: tmp_path / f"by-{size}" for size in sizes}
    for size in sizes:
        folders[size].mkdir()
        after = here(partial(saved, model=model, folder=folders[size]), size, tmp_path)
        names = {path.name for path in folders[size].rglob("*") if path.is_file()}
        assert not any(name.endswith((".pt", ".bin", ".pth", ".distcp", ".metadata")) for name in names)
        for others in sizes:
            again = here(partial(loaded, model=model, folder=folders[size]), others, tmp_path)
            assert max(float((after[n] - again[n]).abs().max()) for n in after) <= 1e-7, (size, others)
    contents = [load_file(next((folders[size] / "model").glob("*.safetensors"))) for size in sizes]
    for other in contents[1:]:
        assert other.keys() == contents[0].keys()


def handed_on(ranks: Ranks, model: dict[str, Any], folder: Path, out: Path) -> dict[str, torch.Tensor]:
    """Take up what was saved and save it again: the weights."""
    learner = started(ranks, model, OPTIM, folder / "model")
    learner.load(folder)
    out.mkdir()
    learner.snapshot()(out)
    return parameters(learner)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", [{}, {"family": "Llama", "tied": True}, {"lora": True}], ids=["full", "tied", "lora"])
def test_what_ranks_save_is_bit_for_bit_what_one_process_saved(
    model: dict[str, Any], size: int, tmp_path: Path
) -> None:
    one, many = tmp_path / "by-one", tmp_path / "by-many"
    one.mkdir()
    saved(OneRank(SteadyRank()), model, one)
    weights = on_ranks(size, partial(handed_on, model=model, folder=one, out=many), tmp_path)
    expected = full_state(small_from(model, one / "model"))
    for state in (weights, full_state(small_from(model, many / "model"))):  # gathered; by transformers' from_pretrained
        assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    moments, again = (load_file(folder / "optimizer.safetensors") for folder in (one, many))
    assert moments.keys() == again.keys() and all(torch.equal(moments[name], again[name]) for name in moments)


# --- weights that no process holds whole


def sliced(ranks: Ranks, config: ModelConfig, folder: Path, adapters: Path | None, out: Path) -> Any:
    """Each rank reads its rows. Writes what a server would load, and returns the weights looked up one by one."""
    build = partial(learner_model, folder, config, adapters, empty=True)
    ranks.call("hold", ModelSource(build, folder), 5, Placement())
    ranks.call("start", CASES["full"].settings, None)
    weights = GatheredWeights.from_ranks(ranks)
    out.mkdir()
    weights.write(out, torch.bfloat16, unties=True)
    snapshot = Publisher(build(), offers=True).offer(weights, 1)  # for vLLM's own transfer
    assert snapshot.shapes and snapshot.parts
    shapes = {name: value.shape for name, value, _ in snapshot.shapes()}
    sent = {name: value.clone() for name, value, _ in snapshot.parts()}
    assert shapes == {name: value.shape for name, value in sent.items()}
    return {name: value.clone() for name, value in weights.items()}, sent


@pytest.mark.parametrize(("model", "lora"), [({"family": "Llama", "tied": True}, False), ({}, True)])
def test_ranks_read_and_write_their_rows_alone(
    model: dict[str, Any], lora: bool, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    small(**model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = ModelConfig(source=str(folder), device="cpu", dtype="float32", lora=LoraSettings() if lora else None)
    torch.manual_seed(5)
    expected = full_state(load_model(folder, config)[0])
    weights, sent = on_ranks(
        2, partial(sliced, config=config, folder=folder, adapters=None, out=tmp_path / "out"), tmp_path
    )
    assert weights.keys() == expected.keys()
    assert expected.keys() - sent.keys() == ({"lm_head.weight"} if model.get("tied") else set())
    assert all(torch.equal(sent[name], expected[name]) for name in sent)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == expected.keys(), "a tied head too, which vLLM wants"
    assert all(torch.equal(written[name], expected[name].bfloat16()) for name in expected)


class LoadingRank(Rank):
    """Knows what its process took of memory when it loaded its model."""

    def hold(self, *source: Any) -> None:
        with Peak() as peak:
            super().hold(*source)
        self._peak = peak.bytes

    def loading_peak(self) -> int:
        return self._peak


def loading(ranks: Ranks, folder: Path) -> list[int]:
    config = ModelConfig(source=str(folder), device="cpu", dtype="float32")
    ranks.call("hold", ModelSource(partial(learner_model, folder, config, empty=True), folder), 5, Placement())
    return ranks.call("loading_peak")


def test_no_rank_ever_holds_the_model_whole_while_it_loads(tokenizer: Any, tmp_path: Path) -> None:
    model = small(vocab=1_150_000).bfloat16()  # as most models are stored
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    whole = 4 * sum(p.numel() for p in model.parameters())
    peaks = on_ranks(4, partial(loading, folder=tmp_path / "model"), tmp_path, rank=LoadingRank)
    assert len(peaks) == 4
    for peak in peaks:  # a quarter, and the same rows in bfloat16, of the file and of one tensor at a time
        assert 0.25 * whole < peak < 0.5 * whole, [peak / whole for peak in peaks]


def published(ranks: Ranks, folder: Path, out: Path) -> Any:
    """What rank 0 takes of memory while weights go out: written, and gathered one by one for vLLM's own transfer."""
    config = ModelConfig(source=str(folder), device="cpu", dtype="float32")
    build = partial(learner_model, folder, config, None, empty=True)
    ranks.call("hold", ModelSource(build, folder), 5, Placement())
    weights = GatheredWeights.from_ranks(ranks)
    snapshot = Publisher(build(), dtype=torch.bfloat16, offers=True).offer(weights, 1)
    out.mkdir()
    with Peak() as written:
        weights.write(out, torch.bfloat16)
    with Peak() as sent:
        assert snapshot.parts
        for _, value, dtype in snapshot.parts():
            assert value.dtype == dtype == torch.bfloat16
    return written.bytes, sent.bytes


def test_a_rank_never_has_more_than_one_tensor_whole_while_weights_go_out(tokenizer: Any, tmp_path: Path) -> None:
    # What is freed of tensors of more than 32 MiB goes back to the system at once (glibc's mmap threshold), also half a
    # head in bfloat16.
    model = small(vocab=1_150_000)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    largest = max(p.numel() * torch.bfloat16.itemsize for p in model.parameters())
    peaks = on_ranks(2, partial(published, folder=tmp_path / "model", out=tmp_path / "out"), tmp_path)
    assert max(peaks) <= 1.1 * largest, [peak / largest for peak in peaks]
