"""Memory, objects and descriptors over 500 steps of a small job: do they grow?

    arpo bench memory [-- --steps 500] [--quick]

One process, measured at every publication of weights: a real learner (a tiny model) and a scripted agent that searches
the atlas. A fifth of the steps is warm-up (caches fill, the allocator settles, what checkpoints and validations need is
loaded: there is one every tenth of the steps); over the rest a line is fitted through each series.
"""

import argparse
import gc
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from _figures import at_most, finish
from _shapes import model_of

from arpo.display.terminal import Console
from arpo.engines import SamplingParams, Weights
from arpo.engines.base import EngineWrapper
from arpo.engines.config import EngineConfig
from arpo.engines.scripted import ScriptedEngine
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train

PAGE = resource.getpagesize()
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads of asyncio's pool, each of which starts when all others are busy for the first time."""
SERIES = ("rss_mb", "objects", "descriptors", "threads")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RECIPE = """\
name: memory
model: {{source: {folder}/model, device: cpu, dtype: float32}}
data: {{train: {{source: atlas}}, validation: {{source: atlas}}}}
chat: {{format: tags, result_tokens: 12, require: []}}
tools: [search]
reward: {{answer: exact}}
engine: {{kind: "memory:scripted", dtype: float32}}
rollout: {{leaves: 3, roots: 2, head: 2, max_calls: 2, turn_tokens: 24, branch_tokens: 1400}}
train:
  {{steps: {steps}, tasks_per_step: 2, token_budget: 4096, save_every: {every}, keep_last: 1, eval_every: {every},
  eval_limit: 2}}
evaluation: {{limit: 2, greedy_limit: 1}}
"""
samples: list[tuple[float, ...]] = []
warm_up = 0


class Measured(EngineWrapper):
    """An engine; what the process holds is measured whenever new weights come."""

    async def update_weights(self, weights: Weights) -> None:
        await super().update_weights(weights)
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20  # noqa: ASYNC240
        descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        samples.append((resident, float(len(gc.get_objects())), float(descriptors), float(threads)))


def scripted(_config: EngineConfig, _model: Any, _tokenizer: Any) -> Measured:
    """Searches or answers, by the request's seed."""

    def play(_prompt: Sequence[int], params: SamplingParams) -> str:
        random = Random(params.seed)
        return random.choice(("<search>capital</search>", "<answer>yes</answer>", "<answer>no</answer>"))

    return Measured(ScriptedEngine(play, _tokenizer))


def measure(folder: Path, steps: int) -> None:
    """Train for `steps` steps in this process; fills `samples`."""
    global warm_up
    warm_up = steps // 5
    samples.clear()
    os.environ["ARPO_CACHE"] = str(folder / "cache")
    for part in (model_of("tiny"), _tokenizer()):
        part.save_pretrained(folder / "model")
    recipe = folder / "memory.yaml"
    recipe.write_text(RECIPE.format(folder=folder, steps=steps, every=max(1, steps // 10)))
    gc.collect()
    gc.freeze()  # what imports made is neither counted nor looked through at every measurement
    with open(os.devnull, "w") as nowhere:
        train(load_recipe(recipe), out=folder / "run", console=Console(file=nowhere))


def growth(values: Sequence[float]) -> float:
    """By a line through `values`: from the first to the last."""
    slope = np.polynomial.Polynomial.fit(range(len(values)), values, 1).convert().coef
    return float(slope[1] * len(values)) if len(slope) > 1 else 0.0


def _tokenizer() -> Any:
    """Bytes, and ChatML's marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(words[:3])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="30 steps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="arpo-memory-") as folder:
        measure(Path(folder), 30 if options.quick else options.steps)
    series = dict(zip(SERIES, zip(*samples[warm_up:], strict=True), strict=True))
    grown = {name: growth(values) for name, values in series.items()}
    objects = round(grown["objects"] / len(series["objects"]), 2)
    figures = {
        "steps": len(samples),
        "after warm-up": {name: values[0] for name, values in series.items()},
        "grown by": {name: round(value, 3) for name, value in grown.items()},
        "rss_kb_a_step": round(1024 * grown["rss_mb"] / len(series["rss_mb"]), 2),
        "objects_a_step": objects,
    }
    goals = [
        at_most(
            "memory grown over the steps after the warm-up, share of it all",
            0.03,
            grown["rss_mb"] / series["rss_mb"][0],
        ),
        at_most("Python objects grown a step (a step's few remembered figures)", 5, objects),
        at_most("descriptors grown", 1, grown["descriptors"]),
        at_most("threads grown", POOL, grown["threads"]),
    ]
    return finish("memory", figures, goals)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import memory  # the module whose engine the recipe names: its samples, not this script's

    raise SystemExit(memory.main())
