"""A model is known by what it is: the same anywhere and in any number of files, another after a step of training."""

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from known_answers import write_played
from safetensors.torch import load_file, save_file

from arpo.assembly.resolve import resolve_model
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.manifest import read_manifest
from arpo.evaluation.recompute import show_results
from arpo.models.identity import EDGE, identity
from arpo.recipe.load import load_recipe
from tiny_project import TinyProject

NUMBERS = itertools.count(4001)


@pytest.fixture
def model(tiny_project: TinyProject, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_project.model, tmp_path / "model"))


def weights(model: Path) -> Path:
    return next(model.glob("*.safetensors"))


def test_the_same_model_is_the_same_wherever_and_in_however_many_files(model, tmp_path):
    known = identity(model)
    elsewhere = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    tensors = load_file(weights(elsewhere))
    names = sorted(tensors, reverse=True)
    weights(elsewhere).unlink()
    save_file(
        {name: tensors[name] for name in names[:3]}, elsewhere / "model-00001-of-00002.safetensors", {"format": "pt"}
    )
    save_file({name: tensors[name] for name in names[3:]}, elsewhere / "model-00002-of-00002.safetensors")
    config = json.loads((elsewhere / "config.json").read_text())
    config = {"_name_or_path": "x", **config, "transformers_version": "0.1"}
    (elsewhere / "config.json").write_text(json.dumps(config))
    assert identity(elsewhere) == known and len(known) == 16


@pytest.mark.parametrize("what", ["weights", "config", "tokenizer", "template", "name", "adapters"])
def test_another_model_is_another(model, tmp_path, what):
    known, folders = identity(model), [model]
    tensors = load_file(weights(model))
    if what == "weights":
        largest = max(tensors, key=lambda name: tensors[name].numel())
        assert tensors[largest].numel() * tensors[largest].element_size() > 2 * EDGE
        tensors[largest].view(-1)[-1] += 1e-4
        save_file(tensors, weights(model))
    elif what == "name":
        first, second = [name for name in tensors if name.endswith("layernorm.weight")][:2]
        save_file({**tensors, first: tensors[second] + 1, second: tensors[first].clone()}, weights(model))
    elif what == "config":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0}))
    elif what in ("tokenizer", "template"):
        path = model / {"tokenizer": "tokenizer.json", "template": "chat_template.jinja"}[what]
        path.write_text(path.read_text() + "\n ")
    else:
        (tmp_path / "adapters").mkdir()
        save_file({"lora_A": torch.ones(2, 2)}, tmp_path / "adapters" / "adapter_model.safetensors")
        folders.append(tmp_path / "adapters")
    assert identity(*folders) != known


def test_a_template_counts_wherever_it_is_written(model):
    known, template = identity(model), model / "chat_template.jinja"
    config = json.loads((model / "tokenizer_config.json").read_text())
    written = template.read_text()
    template.unlink()
    for text, same in ((written, True), (written + "!", False)):
        (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": text}))
        assert (identity(model) == known) is same


def test_a_file_of_weights_that_was_cut_short_is_named(model):
    weights(model).write_bytes(weights(model).read_bytes()[:40])
    with pytest.raises(ConfigError, match="safetensors"):
        identity(model)


def test_only_the_same_model_goes_on(tiny_project, model, tmp_path):
    played = write_played(tiny_project, tmp_path / "project", next(NUMBERS))

    def ask(where: Path, out: str, **more):
        request = EvalRequest(benchmarks=["gsm8k"], data=played.data, model=str(where), out=tmp_path / out, **more)
        return evaluate_model(
            str(played.recipe), load_recipe(played.recipe), request, console=Console(file=io.StringIO())
        )

    ask(model, "out", limit=2)
    assert read_manifest(tmp_path / "out").identity == identity(model)
    moved = model.rename(tmp_path / "moved")
    ask(moved, "out", limit=4, resume=True)
    assert len(played.asked()) == 4, "a model that was moved is the same"
    ask(moved, "part2", shard=(2, 2))
    tensors = load_file(weights(moved))
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights(moved), {"format": "pt"})
    with pytest.raises(ConfigError, match=r"something else \(another model: .*moved"):
        ask(moved, "out", resume=True)
    ask(moved, "part1", shard=(1, 2))
    with pytest.raises(ConfigError, match="another model"):
        show_results(
            [tmp_path / "part1", tmp_path / "part2"], out=tmp_path / "whole", console=Console(file=io.StringIO())
        )


def test_a_model_that_cannot_be_had_leaves_no_folder_behind(tiny_project, tmp_path):
    played = write_played(tiny_project, tmp_path / "project", next(NUMBERS))
    request = EvalRequest(benchmarks=["gsm8k"], data=played.data, model=str(tmp_path), out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"config\.json"):
        evaluate_model(str(played.recipe), load_recipe(played.recipe), request, console=Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_a_cold_starts_folder_and_its_model_are_models(tiny_project, model, tmp_path):
    (model / "MANIFEST.json").write_text("{}")
    kept = tmp_path / "kept"
    kept.mkdir()
    model.rename(kept / "model")
    recipe = load_recipe(tiny_project.recipe)
    for name in (kept, kept / "model"):
        found = resolve_model(str(name), recipe)
        assert found.run.model.source == str(kept / "model") and found.weights is None and found.folder is None
