"""A checkpoint is there whole or not at all; a damaged one is recognised, named and passed over."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arpo.errors import CheckpointError
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.runs import checkpoint
from arpo.runs.atomic import fault, settle, whole_folder
from arpo.runs.checkpoint import TrainState
from tiny_models import tiny_model


def learner_of(model: Any, **optim: Any) -> LocalLearner:
    return LocalLearner(
        model, loss=LossConfig(), optim=OptimConfig(lr=1e-2, **optim), num_updates=9, token_budget=99, tree=False
    )


def step_of(learner: LocalLearner) -> None:
    """A real update, by a loss that is as good as any."""
    learner.policy.model(torch.arange(6)[None]).logits.square().mean().backward()
    learner.rank._step((), True, 1e-2)
    learner.updates += 1


def write(folder: Path, tokenizer: Any, *steps: int, keep: int = 9, best: int = 0) -> None:
    for step in steps:
        state, learner = TrainState(step=step, best_step=best, window=(0.5, 1.25)), learner_of(tiny_model("llama"))
        step_of(learner)
        checkpoint.save(folder, state, learner.snapshot(), tokenizer, keep=keep)


def test_what_is_saved_comes_back(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_model("llama")
    learner = learner_of(model)
    step_of(learner)
    step_of(learner)
    state = TrainState(step=12, position=96, window=(0.1, 2.0), best=0.5, best_step=8, validated=12, seconds=3.5)
    saved = checkpoint.save(tmp_path, state, learner.snapshot(), tokenizer, keep=1)
    found, passed = checkpoint.newest(tmp_path)
    assert found == saved and found is not None and found.state == state and passed == []
    again = tiny_model("llama", seed=1)
    again.load_state_dict({**again.state_dict(), **load_file(found.model / "model.safetensors")})
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    fresh = learner_of(again)
    fresh.load(found.path)
    assert fresh.updates == 2, "where the learning rate's schedule stands"
    for one in (learner, fresh):  # the next step is the same to the bit
        step_of(one)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, tokenizer, 1, 2, 3, 4, 5, keep=2, best=2)
    (tmp_path / "step-notes").mkdir()  # a user's own
    write(tmp_path, tokenizer, 6, keep=2, best=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000002",
        "step-000005",
        "step-000006",
        "step-notes",
    ]


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "a bit", "manifest cut", "no manifest", "manifest no object"]
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, tokenizer: Any, damage: str) -> None:
    write(tmp_path, tokenizer, 1, 2)
    last = tmp_path / "step-000002"
    weights, manifest = last / "model" / "model.safetensors", last / "MANIFEST.json"
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "missing":
            (last / "optimizer.json").unlink()
        case "a bit":
            content = bytearray(weights.read_bytes())
            content[len(content) // 2] ^= 1
            weights.write_bytes(content)
        case "manifest cut":
            manifest.write_text(manifest.read_text()[:20])
        case "no manifest":
            manifest.unlink()
        case "manifest no object":
            manifest.write_text("3")
    found, passed = checkpoint.newest(tmp_path)
    assert found is not None and found.state.step == 1
    assert len(passed) == 1 and passed[0].startswith("step-000002: ")
    with pytest.raises(CheckpointError, match="step-000002"):
        checkpoint.open_checkpoint(last)


@pytest.mark.slow
def test_a_checkpoint_cut_anywhere_is_passed_over_and_named(tmp_path: Path, tokenizer: Any) -> None:
    """Every file of it, cut at its beginning, its end and places between; of the small ones every byte."""
    write(tmp_path, tokenizer, 1, 2)
    last = tmp_path / "step-000002"
    for file in sorted(path for path in last.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        for count in {*range(min(len(raw), 400)), *range(0, len(raw), max(1, len(raw) // 10)), len(raw) - 1}:
            file.write_bytes(raw[:count])
            found, passed = checkpoint.newest(tmp_path)
            assert found is not None and found.state.step == 1, (file.name, count)
            assert len(passed) == 1 and passed[0].startswith("step-000002: ") and file.name in passed[0]
        file.write_bytes(raw)
    assert checkpoint.newest(tmp_path)[1] == []


def test_a_flipped_bit_in_any_file_is_found(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, tokenizer, 1)
    saved = tmp_path / "step-000001"
    random = Random(0)
    for file in sorted(path for path in saved.rglob("*") if path.is_file() and path.name != "MANIFEST.json"):
        raw = file.read_bytes()
        for at in {0, len(raw) - 1, *(random.randrange(len(raw)) for _ in range(10))}:
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :])
            assert fault(saved) == f"{file.relative_to(saved)} is damaged: its checksum does not fit"
        file.write_bytes(raw)
    assert fault(saved) is None


def test_a_manifest_of_sizes_alone_is_still_read(tmp_path: Path, tokenizer: Any) -> None:
    """As they were written at first."""
    write(tmp_path, tokenizer, 1)
    manifest = tmp_path / "step-000001" / "MANIFEST.json"
    manifest.write_text(
        json.dumps({name: listed["bytes"] for name, listed in json.loads(manifest.read_text()).items()})
    )
    assert fault(tmp_path / "step-000001") is None
    (tmp_path / "step-000001" / "state.json").write_text("{}")
    assert "bytes instead of" in (fault(tmp_path / "step-000001") or "")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_passed_over(tmp_path: Path, tokenizer: Any, number: float) -> None:
    write(tmp_path, tokenizer, 1)
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[3, 5] = number
    checkpoint.save(tmp_path, TrainState(step=2), learner_of(model).snapshot(), tokenizer, keep=9)
    for doubtful in (False, True):
        found, passed = checkpoint.newest(tmp_path, doubtful=doubtful)
        assert found is not None and found.state.step == 1
        assert passed == ["step-000002: model.layers.1.mlp.up_proj.weight in model.safetensors is not finite"]


def test_what_came_after_skipped_updates_is_only_used_where_there_is_nothing_else(
    tmp_path: Path, tokenizer: Any
) -> None:
    model = tiny_model("llama")
    for step, skipped in ((2, 1), (4, 0), (6, 1), (7, 2)):
        state = TrainState(step=step, skipped=skipped)
        checkpoint.save(tmp_path, state, learner_of(model).snapshot(), tokenizer, keep=9)
    found, passed = checkpoint.newest(tmp_path)
    assert found is not None and found.state.step == 4
    assert [text.partition(":")[0] for text in passed] == ["step-000007", "step-000006"] and "not finite" in passed[0]
    assert checkpoint.newest(tmp_path, doubtful=True)[0] == checkpoint.open_checkpoint(tmp_path / "step-000007")
    shutil.rmtree(tmp_path / "step-000004")
    (tmp_path / "step-000007" / "state.json").unlink()
    found, passed = checkpoint.newest(tmp_path)
    assert found is not None and found.state.step == 6 and passed == ["step-000007: state.json is missing"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_is_what_torch_says(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for values in ([], [0.0, 1.0], [most, -most], [most, float("inf")], [float("nan"), 1.0], [-float("inf")]):
        tensor = torch.tensor(values, dtype=dtype)
        assert checkpoint.is_finite(tensor) == bool(tensor.isfinite().all())
    assert checkpoint.is_finite(torch.arange(3))


def test_a_process_killed_while_saving_leaves_the_old_one(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, tokenizer, 1)
    unfinished = tmp_path / ".partial-step-000002.999"
    shutil.copytree(tmp_path / "step-000001", unfinished)
    assert checkpoint.newest(tmp_path)[0] == checkpoint.open_checkpoint(tmp_path / "step-000001")
    write(tmp_path, tokenizer, 2)
    assert not unfinished.exists()


@pytest.mark.parametrize("there", ["nothing", "damaged", "whole"])
def test_a_checkpoint_that_lacks_only_its_name_gets_it(tmp_path: Path, tokenizer: Any, there: str) -> None:
    """The process was killed when all was written; or between the two renames that put a folder in another's place."""
    write(tmp_path, tokenizer, 1)
    unnamed, unfinished = tmp_path / ".partial-step-000001.abc", tmp_path / ".partial-step-000002.def"
    shutil.copytree(tmp_path / "step-000001", unnamed)
    shutil.copytree(tmp_path / "step-000001", unfinished)
    (unfinished / "MANIFEST.json").unlink()
    (tmp_path / ".partial-state.json.ghi").touch()
    if there == "nothing":
        shutil.rmtree(tmp_path / "step-000001")
    elif there == "damaged":
        (tmp_path / "step-000001" / "state.json").unlink()
    settle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"] and fault(tmp_path / "step-000001") is None


def test_a_folder_that_cannot_be_filled_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with whole_folder(tmp_path / "a") as partial:
            (partial / "x").write_text(content)
    assert (tmp_path / "a" / "x").read_text() == "second" and fault(tmp_path / "a") is None


def test_a_state_of_another_version_is_said_to_be_one(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, tokenizer, 1)
    path, manifest = tmp_path / "step-000001", tmp_path / "step-000001" / "MANIFEST.json"
    (path / "state.json").write_text(json.dumps({"step": 1, "mood": "fine", "window": []}))
    sizes = {**json.loads(manifest.read_text()), "state.json": (path / "state.json").stat().st_size}
    manifest.write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match="mood"):
        checkpoint.open_checkpoint(path)


@pytest.mark.parametrize("change", ["fewer parameters", "other shapes"])
def test_the_optimizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Any, change: str) -> None:
    write(tmp_path, tokenizer, 1)
    (found := checkpoint.newest(tmp_path)[0]) or pytest.fail("no checkpoint")
    model = tiny_model("llama", vocab=64 if change == "fewer parameters" else 65)
    model.model.norm.weight.requires_grad = change != "fewer parameters"
    other = learner_of(model)
    with pytest.raises(CheckpointError, match="another model"):
        other.load(found.path)


def test_an_optimizer_file_without_its_number_of_updates_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, tokenizer, 1)
    file = tmp_path / "step-000001" / "optimizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "updates"}))
    with pytest.raises(
        CheckpointError, match=r"step-000001: optimizer\.json is not of this version \(KeyError\('updates'\)\)"
    ):
        learner_of(tiny_model("llama")).load(file.parent)


def test_an_optimizer_that_goes_on_keeps_the_settings_it_was_given_now(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, tokenizer, 1)
    (found := checkpoint.newest(tmp_path)[0]) or pytest.fail("no checkpoint")
    settings = {"weight_decay": 0.5, "betas": (0.5, 0.6)}
    fresh = learner_of(tiny_model("llama"), **settings)
    fresh.load(found.path)
    assert settings.items() <= fresh.optimizer.param_groups[0].items()
    assert all(state["step"] == 1 for state in fresh.optimizer.state.values()), "its moments are those that were saved"
