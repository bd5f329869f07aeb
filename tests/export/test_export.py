"""An exported model is the run's model: same logits, loads anywhere, and its card says where it comes from."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from arpo.assembly.components import model_folder
from arpo.assembly.resolve import resolve_model
from arpo.display.terminal import Console
from arpo.errors import CheckpointError, ConfigError
from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.samples import read_samples
from arpo.export.model import export
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train
from tiny_project import TinyProject

PROMPT = [5, 17, 300, 42, 8, 8, 90]


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([PROMPT])).logits


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))


def remember_best(run: Path, step: int) -> None:
    """As if the validation at `step` had been the best."""
    for path in (run / "checkpoints").glob("*/state.json"):
        text = path.read_text()
        state = json.loads(text)
        assert state["best_step"] == 0
        path.write_text(text.replace('"best_step": 0', f'"best_step": {step}'))
        manifest = path.with_name("MANIFEST.json")
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state.json": path.stat().st_size}))


def test_it_is_the_last_checkpoint_where_nothing_was_validated(tiny_run: Path, tmp_path: Path) -> None:
    import torch

    out = export(tiny_run, tmp_path / "out")
    last = loaded(tiny_run / "checkpoints" / "step-000002" / "model")
    first = loaded(tiny_run / "checkpoints" / "step-000001" / "model")
    assert torch.equal(logits(loaded(out)), logits(last)) and not torch.equal(logits(last), logits(first))
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in out.iterdir()}
    from transformers import AutoTokenizer

    assert (
        AutoTokenizer.from_pretrained(out).chat_template
        == AutoTokenizer.from_pretrained(tiny_run.parents[1] / "model").chat_template
    )


def test_it_is_the_best_checkpoint_where_something_was(own_run: Path) -> None:
    remember_best(own_run, 1)
    found = resolve_model(str(own_run))
    assert found.checkpoint is not None and found.checkpoint.state.step == 1 and "best validation" in found.label
    assert "not of this checkpoint (step 1)" in (export(own_run, own_run / "out") / "README.md").read_text()


def test_a_checkpoint_is_named_by_its_folder(tiny_run: Path) -> None:
    found = resolve_model(str(tiny_run / "checkpoints" / "step-000001"))
    assert found.checkpoint is not None and found.checkpoint.state.step == 1 and found.run.name == "tiny"


def test_a_truncated_checkpoint_is_passed_over_or_refused(own_run: Path) -> None:
    weights = own_run / "checkpoints" / "step-000002" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = resolve_model(str(own_run))
    assert found.checkpoint is not None and found.checkpoint.state.step == 1
    with pytest.raises(CheckpointError, match="bytes instead of"):
        resolve_model(str(own_run / "checkpoints" / "step-000002"))


def test_the_card_says_what_it_is_and_nothing_of_this_machine(tiny_run: Path, tmp_path: Path) -> None:
    card = (export(tiny_run, tmp_path / "out") / "README.md").read_text()
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert f"{100 * summary['accuracy_after']['mean']:.1f} %" in card and "| sampled |" in card and "| greedy |" in card
    assert "2 steps of reinforcement learning" in card and "tiny_world:parity" in card and "branch_tokens: 160" in card
    assert str(tiny_run.parents[1]) not in card and str(Path.home()) + "/" not in card
    import yaml

    front, _, _ = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "transformers"


def test_a_run_that_was_moved_is_exported_without_the_model_it_began_from(own_run: Path, tmp_path: Path) -> None:
    import torch

    recipe = own_run / "recipe.yaml"
    recipe.write_text(re.sub(r"source: .*/model\n", f"source: {tmp_path}/not/here\n", recipe.read_text()))
    found = resolve_model(str(own_run))
    assert "not/here" in found.run.model.source and found.weights is not None
    assert model_folder(found.run, found.weights) == found.weights
    assert torch.equal(logits(loaded(export(own_run, tmp_path / "out"))), logits(loaded(found.weights)))


def test_lora_is_merged(tiny_project: TinyProject, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft")
    changes = ["model.lora={rank: 2, alpha: 8}", "train.steps=1", "evaluation.limit=3", "evaluation.greedy_limit=0"]
    run = load_recipe(tiny_project.recipe, [*changes, "cold_start.steps=5", "name=lora"])
    folder = train(run, out=tmp_path / "run", console=Console(quiet=True))
    out = export(folder, tmp_path / "out")
    asked = load_recipe(folder, ["engine.deterministic=true", "evaluation={limit: 4, greedy_limit: 4}"])
    places = {"trained": None, "exported": str(out)}
    for name, model in places.items():
        request = EvalRequest(model=model, out=tmp_path / name)
        evaluate_model(str(folder), asked, request, console=Console(quiet=True))
    as_trained, as_exported = (
        [
            {key: s.transcript for key, s in read_samples(each).items()}
            for each in sorted((tmp_path / name / "evaluation").iterdir())
        ]
        for name in places
    )
    assert as_trained == as_exported and all(as_trained), "the engine has the adapters merged, too"
    base = AutoModelForCausalLM.from_pretrained(tiny_project.model)
    trained = peft.PeftModel.from_pretrained(base, folder / "checkpoints" / "step-000001" / "model")
    merged = loaded(out)
    assert type(merged).__name__ == "LlamaForCausalLM" and not (out / "adapter_config.json").exists()
    torch.testing.assert_close(logits(merged), logits(trained), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(merged), logits(loaded(tiny_project.model)), atol=1e-4)
    assert "LoRA adapters merged" in (out / "README.md").read_text()


def test_mistakes_are_named_and_write_nothing(tiny_run: Path, tiny_project: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").touch()
    with pytest.raises(ConfigError, match="not empty"):
        export(tiny_run, tmp_path / "full")
    with pytest.raises(ConfigError, match="no run and no checkpoint"):
        export(tiny_project.model, tmp_path / "out")
    bare = tmp_path / "bare"
    shutil.copytree(tiny_run, bare, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError, match="no checkpoint"):
        export(bare, tmp_path / "out")
    with pytest.raises(ConfigError, match="names its owner"):
        export(tiny_run, tmp_path / "out", push="name")
    with pytest.raises(ConfigError, match="not a Hub id"):
        export(tiny_run, tmp_path / "out", push="a/b/c")
    assert not (tmp_path / "out").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["keep"]


@pytest.mark.parametrize(
    ("token", "expected"), [(None, "nobody is logged in"), ("hf_nonsense", "the Hub did not take it")]
)
def test_pushing_without_login_or_network(
    tiny_run: Path, tmp_path: Path, token: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub = "huggingface_hub.constants"  # it has read the variables
    monkeypatch.setattr(f"{hub}.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(f"{hub}.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(f"{hub}.HF_HUB_OFFLINE", False)
    with pytest.raises(ConfigError, match=expected):
        export(tiny_run, tmp_path / "out", push="somebody/model")
    assert (tmp_path / "out" / "model.safetensors").exists() == (token is not None)  # what was written stays
