"""QLoRA: adapters over a base in 4 bits train alike however they are packed, and engines get what the policy is."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from arpo.errors import ConfigError
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.lora import full_state, plain_model
from arpo.models.loading import LoraSettings, ModelConfig, load_model
from random_trees import random_tree
from tiny_project import write_tiny_model

THERE = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not THERE, reason="needs the extra nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("nf4"), tokenizer)


def loaded(folder: Path, *, checkpointing: bool = False, weights: Path | None = None) -> Any:
    lora = LoraSettings(rank=4, base="nf4")
    config = ModelConfig(
        source=str(folder), device="cpu", dtype="float32", lora=lora, gradient_checkpointing=checkpointing
    )
    torch.manual_seed(0)
    return load_model(folder, config, weights)[0]


def trained(model: Any, *, tree: bool = True) -> LocalLearner:
    learner = LocalLearner(
        model, loss=LossConfig(), optim=OptimConfig(lr=1e-2), num_updates=9, token_budget=64, tree=tree
    )
    learner.rank.optimizer.param_groups[0]["eps"] = 1.0
    for step in range(2):
        learner.update([random_tree(10 * step + number) for number in range(4)])
    return learner


def test_what_cannot_be_in_4_bits_is_refused(folder: Path) -> None:
    config = ModelConfig(source=str(folder), device="cpu", lora=LoraSettings(base="nf4"))
    with pytest.raises(ConfigError, match=r"model\.lora\.base.*ranks"):
        load_model(folder, config, empty=True)
    if not THERE:
        with pytest.raises(ConfigError, match=r"bitsandbytes.*nf4"):
            load_model(folder, config)


@needs_bitsandbytes
@pytest.mark.slow
def test_adapters_train_alike_and_engines_get_what_the_policy_is(folder: Path, tmp_path: Path) -> None:
    tree, flat = trained(loaded(folder)), trained(loaded(folder, checkpointing=True), tree=False)
    adapters = {name: p for name, p in tree.policy.model.named_parameters() if p.requires_grad}
    assert adapters and all(".lora_" in name for name in adapters)
    for name, other in flat.policy.model.named_parameters():
        if other.requires_grad:
            assert torch.allclose(adapters[name], other, atol=1e-5), name
    model, ids = tree.policy.model.eval(), torch.arange(20)[None]
    plain = plain_model(model)
    assert plain.state_dict().keys() == load_model(folder, ModelConfig(device="cpu"))[0].state_dict().keys()
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, model(ids).logits, atol=1e-4)
    assert not any(weight.dtype == torch.uint8 for weight in full_state(model).values())
    tree.snapshot()(tmp_path)
    again = loaded(folder, weights=tmp_path / "model")
    resumed = trained_of(again)
    resumed.load(tmp_path)
    assert all(torch.equal(adapters[n], p) for n, p in again.named_parameters() if p.requires_grad)
    assert resumed.updates == 2


def trained_of(model: Any) -> LocalLearner:
    return LocalLearner(model, loss=LossConfig(), optim=OptimConfig(), num_updates=9, token_budget=64, tree=True)
