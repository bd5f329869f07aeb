"""A whole project in miniature: a tiny model, a tool, a reward by exact match, tasks, traces and a recipe.

Everything in it is real, so that a run (cold start, training, evaluation, report) takes seconds. The question is
whether a number is odd or even; after its cold start the model calls the tool and is right about half of the time.
`RECIPE` may be changed with `key=value` as usual.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TOOL = '''"""The tiny world's only tool."""


def parity(number: int) -> str:
    """Parity of a number.

    Args:
        number: which
    """
    return "odd" if number % 2 else "even"
'''

RECIPE = """\
name: tiny
seed: 3
model: {source: ./model, device: cpu, dtype: float32}
data:
  train: {source: train.jsonl}
  validation: {source: validation.jsonl}
  test: {source: test.jsonl}
chat: {format: tags, result_tokens: 12, require: []}
tools: ["tiny_world:parity"]
reward: {answer: exact}
engine: {dtype: float32, slots: 32}
rollout:
  {leaves: 6, roots: 3, head: 2, max_calls: 2, turn_tokens: 24, branch_tokens: 160, rule: {rule: paper, alpha: 0.9}}
optim: {lr: 1.0e-3}
train: {steps: 2, tasks_per_step: 3, token_budget: 2048, save_every: 1}
cold_start: {traces: traces.jsonl, num_traces: null, batch: 10, steps: 60, lr: 2.0e-2}
evaluation: {limit: 12, greedy_limit: 6}
"""


@dataclass(frozen=True, slots=True)
class TinyProject:
    """`recipe` lies in `folder` beside what it names; `cache` keeps its cold start."""

    folder: Path
    cache: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def model(self) -> Path:
        return self.folder / "model"


def tiny_llama(tokenizer: Any = None, **changes: Any) -> Any:
    """2 layers, hidden size 32, 4 heads over 2 key heads, with the vocabulary and special tokens of `tokenizer`; always
    the same weights. `changes`: other values of the config."""
    import torch
    import transformers

    config: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    if tokenizer is not None:
        config |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        config |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


def write_tiny_model(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """The model and its tokenizer as a Hugging Face folder."""
    tiny_llama(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word(number: int) -> str:
    return "odd" if number % 2 else "even"


def question(number: int) -> dict[str, Any]:
    asked = {"id": f"parity/{number}", "question": f"Parity of {number}", "answer": word(number)}
    return {**asked, "family": "two digits" if number > 9 else "one digit"}


def trace(number: int) -> dict[str, Any]:
    asked = {"id": f"trace/{number}", "question": f"Parity of {number}", "answers": [word(number)]}
    calls = [{"name": "parity", "arguments": {"number": number}}]
    return {**asked, "steps": [{"calls": calls}, {"answer": word(number)}]}


def write_tiny_project(folder: Path, tokenizer: Any) -> TinyProject:
    """Write the whole project into `folder`, with a cache of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    project = TinyProject(folder, folder / "cache")
    write_tiny_model(project.model, tokenizer)
    (folder / "tiny_world.py").write_text(TOOL)
    project.recipe.write_text(RECIPE)
    numbers = {"train": range(3, 31), "validation": range(31, 36), "test": [0, 1, 2, *range(36, 45)]}
    for split, asked in numbers.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(question(n)) + "\n" for n in asked))
    (folder / "traces.jsonl").write_text("".join(json.dumps(trace(n)) + "\n" for n in range(1, 41)))
    return project


# An image of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def sketch_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts of this process become files of one pixel, without the seconds that matplotlib takes for a report's."""
    monkeypatch.setattr("arpo.display.charts._write_png", lambda path, *_: path.write_bytes(PIXEL))


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[TinyProject]:
    """The project's files, once for all tests. Use `tiny_project`, which also points the cache there."""
    project = write_tiny_project(tmp_path_factory.mktemp("tiny"), tokenizer)
    written = _contents(project)
    yield project
    now = _contents(project)
    assert [path.name for path in written if now.get(path) != written[path]] == [], (
        "a test changed files that all tests share"
    )


def _contents(project: TinyProject) -> dict[Path, bytes]:
    """Of the project's own files, without the cache and the runs that tests make beside them."""
    own = [*project.folder.glob("*.*"), *project.model.iterdir()]
    return {path: path.read_bytes() for path in own if path.is_file()}


@pytest.fixture
def tiny_project(tiny_files: TinyProject, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """The project, shared by all tests: do not change its files. Its cold start is made by the first that needs it."""
    monkeypatch.setenv("ARPO_CACHE", str(tiny_files.cache))
    return tiny_files


@pytest.fixture
def own_project(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A project whose files a test may change."""
    monkeypatch.delitem(sys.modules, "tiny_world", raising=False)  # of another project
    project = write_tiny_project(tmp_path / "own", tokenizer)
    monkeypatch.setenv("ARPO_CACHE", str(project.cache))
    return project


@pytest.fixture(scope="session")
def finished_tiny_run(tiny_files: TinyProject) -> Path:
    """The folder of a finished run of the project (2 steps), shared by all tests: do not change it. Its report has
    sketches for plots."""
    from arpo.display.terminal import Console
    from arpo.recipe.load import load_recipe
    from arpo.training.pipeline import train

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ARPO_CACHE", str(tiny_files.cache))
        sketch_plots(environment)
        folder = tiny_files.folder / "runs" / "tiny"
        train(load_recipe(tiny_files.recipe), out=folder, console=Console(quiet=True))
    return folder


@pytest.fixture
def tiny_run(finished_tiny_run: Path, tiny_project: TinyProject) -> Path:
    """The same, with the cache in place."""
    return finished_tiny_run
