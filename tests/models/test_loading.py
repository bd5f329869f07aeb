"""A model folder becomes a model that can be trained: which parameters, in which precision, on which device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from arpo.errors import ConfigError
from arpo.learner.policy import choose_packing
from arpo.models.loading import LoraSettings, ModelConfig, compute_dtype, device_of, load_model, with_lora
from tiny_project import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_llama(tokenizer).to(torch.bfloat16).save_pretrained(path)  # as most models on the Hub are stored
    tokenizer.save_pretrained(path)
    return path


def test_every_parameter_is_trained_in_float32(folder: Path) -> None:
    model, tokenizer = load_model(folder, ModelConfig(device="cpu", dtype="bfloat16"))
    assert model.training and tokenizer.eos_token_id is not None
    assert all(parameter.requires_grad and parameter.dtype is torch.float32 for parameter in model.parameters())


def test_lora_trains_its_own_matrices_alone(folder: Path) -> None:
    model, _ = load_model(folder, ModelConfig(device="cpu", dtype="bfloat16", lora=LoraSettings(rank=2, alpha=4)))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and parameter.dtype is torch.float32 for name, parameter in trained.items())
    frozen = [parameter for name, parameter in model.named_parameters() if name not in trained and parameter.dim() > 1]
    assert all(parameter.dtype is torch.bfloat16 for parameter in frozen)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_weights_come_back(folder: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    config = ModelConfig(device="cpu", dtype="float32", lora=lora)
    model, _ = load_model(folder, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    _, tokenizer = load_model(folder, config)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_model(folder, config, tmp_path)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens).logits, again.eval()(tokens).logits)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_checkpointing_changes_no_gradient(folder: Path, lora: LoraSettings | None) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        config = ModelConfig(device="cpu", dtype="float32", lora=lora, gradient_checkpointing=checkpointing)
        torch.manual_seed(1)  # LoRA's first matrix is random
        model, _ = load_model(folder, config)
        tokens = torch.arange(12)[None]
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain and plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-7) for name in plain)


def test_targets_that_match_nothing_are_a_config_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.targets"):
        load_model(folder, ModelConfig(device="cpu", lora=LoraSettings(targets=["nothing"])))


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head"]])
def test_adapters_on_embeddings_that_are_the_head_too_are_refused(folder: Path, targets: list[str]) -> None:
    """Merged for the engine and the export they would make another model than the one that was trained."""
    for tied in (True, False):
        model = tiny_llama(AutoTokenizer.from_pretrained(folder), tie_word_embeddings=tied)
        model.save_pretrained(folder.parent / f"{folder.name}-{tied}")
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder.parent / f"{folder.name}-{tied}")
    config = ModelConfig(device="cpu", dtype="float32", lora=LoraSettings(rank=2, targets=targets))
    with pytest.raises(ConfigError, match=r"model\.lora\.targets"):
        choose_packing(load_model(folder.parent / f"{folder.name}-True", config)[0], "auto")
    if "lm_head" not in targets:
        assert choose_packing(load_model(folder.parent / f"{folder.name}-False", config)[0], "auto") == (True, None)


def test_a_folder_that_is_no_language_model(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ConfigError, match="no causal language model"):
        load_model(tmp_path, ModelConfig(device="cpu"))


def test_devices_and_precision() -> None:
    cpu = torch.device("cpu")
    assert compute_dtype(ModelConfig(dtype="bfloat16"), cpu) is torch.bfloat16
    assert compute_dtype(ModelConfig(dtype="float32"), cpu) is torch.float32
    assert compute_dtype(ModelConfig(), cpu) in (torch.bfloat16, torch.float32)
    assert device_of(ModelConfig(device="cpu")) == cpu
    if torch.cuda.device_count() == 0:
        assert device_of(ModelConfig()) == cpu
        with pytest.raises(ConfigError, match="no such device"):
            device_of(ModelConfig(device="cuda"))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_adapters_add_what_peft_s_own_layers_add(tokenizer: Any, autocast: bool) -> None:
    model = with_lora(tiny_llama(tokenizer), LoraSettings(rank=4, alpha=32))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    tokens = torch.randint(3, 300, (2, 9))

    def computed() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(tokens).logits
        logits.float().square().mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    ours = computed()
    for layer in model.modules():
        if hasattr(layer, "lora_variant"):
            assert layer.lora_variant
            layer.lora_variant.clear()
    tolerance = {"rtol": 0.05, "atol": 0.02} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours, computed(), **tolerance)
