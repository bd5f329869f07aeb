"""Wall time of ten training steps with sampling in turn and ahead of training (`train.max_staleness` 0 and 1).

Twice: with a scripted agent whose tokens and calls take realistic times, which are waited for (an engine and tools on other
machines), and with the local engine, which computes on the cores that the learner computes on. The learner is real in both: a
Llama of a few million random weights. The sides take turns; each is a whole `arpo train` with hardly an evaluation.

    python benchmarks/ahead.py [--engine scripted|local|both] [--steps 10] [--rounds 1] [--hidden 128] [--quick]
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from _figures import at_most, finish
from _tiny_model import write_tiny_model
from _world import GOES_ON, WORDS, Search, Times, tokenizer
from rich.console import Console

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.engines import SamplingParams
from arpo.engines.config import EngineConfig
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.tasks import Task
from arpo.training.pipeline import train

TIMES = Times(speed=5.0)  # tokens of 4 ms, calls of 0.1 s in the median and 0.6 s in 5 % of cases
RECIPE = """\
name: ahead
model: {{source: {folder}/model, device: cpu, dtype: float32}}
data:
  train: {{source: {folder}/train.jsonl}}
  test: {{source: {folder}/test.jsonl}}
chat: {{format: tags, result_tokens: 80, require_think: false}}
tools: ["ahead:search"]
reward: {{use: "ahead:score"}}
rollout: {{leaves: 8, roots: 4, head: 10, max_calls: 4, turn_tokens: 200, branch_tokens: 1500}}
optim: {{lr: 1.0e-3}}
train: {{tasks_per_step: 4, token_budget: 4096, save_every: null, trackers: []}}
evaluation: {{limit: 1, greedy_limit: 0}}
"""
PLANS = {
    "scripted": ("engine.kind=ahead:scripted",),
    "local": ("rollout.turn_tokens=96", "rollout.branch_tokens=400", "rollout.roots=8", "rollout.rule=none"),
}
search = Search(TIMES)


def scripted(_config: EngineConfig, _model: Any, text: Any) -> ScriptedEngine:
    """Its turns have a median of 80 tokens and call up to four times."""
    result = text.convert_tokens_to_ids("<result>")

    def play(prompt: Sequence[int], params: SamplingParams) -> Script:
        draw = Random(f"{params.seed}/says")
        length = min(180, max(24, round(80 * math.exp(draw.gauss(0.0, 0.5)))))
        calls = draw.random() < GOES_ON[min(list(prompt).count(result), 4)]
        said = " ".join(draw.choices(WORDS, k=length - 16))
        act = f"<search>{draw.randint(0, 9)}</search>" if calls else "<answer>Lima</answer>"
        return Script(said=f"<think>{said}</think>{act}", delay_s=TIMES.until_first(len(prompt)), token_s=TIMES.token())

    return ScriptedEngine(play, text)


def score(_task: Task, said: Transcript) -> Score:
    """By length, so that hardly a group is equal."""
    share = len(said.turns[-1].text) % 17 / 16
    return Score(reward=share, accuracy=share)


def write_job(folder: Path, hidden: int) -> Path:
    text, heads = tokenizer(), hidden // 32
    write_tiny_model(
        folder / "model",
        text,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=6,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=text.eos_token_id,
    )
    for split, numbers in {"train": range(200), "test": range(200, 202)}.items():
        lines = [json.dumps({"id": f"{split}/{n}", "question": f"Question {n}?", "answer": "Lima"}) + "\n" for n in numbers]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


def one_run(recipe: Path, out: Path, plan: Sequence[str]) -> dict[str, float]:
    """Seconds of the steps, processor seconds of the process, and the phases of a step in the mean."""
    cpu = time.process_time()
    with open(os.devnull, "w") as nowhere:
        train(load_recipe(recipe, plan), out=out, console=Console(file=nowhere))
    cpu = time.process_time() - cpu
    lines = RunFolder(out).metrics()
    total = {name: sum(line.get(name) or 0.0 for line in lines) for name in ("seconds/sampling", "seconds/update", "seconds/step")}
    return {
        "seconds": total["seconds/step"],
        "waited_for_sampling": total["seconds/sampling"],
        "in_updates": total["seconds/update"],
        "cpu": cpu,
        "staleness_mean": statistics.fmean(line["staleness/mean"] for line in lines),
        "staleness_max": max(line["staleness/max"] for line in lines),
        "mismatch_abs_mean": statistics.fmean(line.get("train/mismatch_abs_mean", 0.0) for line in lines),
        "truncated": statistics.fmean(line.get("train/mismatch_truncated", 0.0) for line in lines),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=(*PLANS, "both"), default="both")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=128, help="the model's width")
    parser.add_argument("--quick", action="store_true", help="three steps of a smaller model")
    given = parser.parse_args(argv)
    steps, hidden = (3, 64) if given.quick else (given.steps, given.hidden)
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="arpo-ahead-") as temporary:
        folder = Path(temporary)
        os.environ["ARPO_CACHE"] = str(folder / "cache")
        recipe = write_job(folder, hidden)
        for number in range(given.rounds):
            for engine in PLANS if given.engine == "both" else (given.engine,):
                for most in (0, 1) if number % 2 == 0 else (1, 0):
                    plan = (*PLANS[engine], f"train.steps={steps}", f"train.max_staleness={most}", f"seed={number}")
                    seen = one_run(recipe, folder / f"{engine}-{most}-{number}", plan)
                    runs.setdefault(f"{engine}, staleness {most}", []).append(seen)
                    print(engine, most, " ".join(f"{name} {value:.3g}" for name, value in seen.items()), flush=True)
    middle = {side: {name: statistics.median(one[name] for one in all_) for name in all_[0]} for side, all_ in runs.items()}
    goals = []
    for engine in PLANS:
        if f"{engine}, staleness 0" in middle:
            ratio = middle[f"{engine}, staleness 1"]["seconds"] / middle[f"{engine}, staleness 0"]["seconds"]
            goals.append(at_most(f"{steps} steps ahead to {steps} steps in turn, {engine} engine", 1.0, ratio))
    return finish("ahead", {"median": middle, "runs": runs, "steps": steps, "hidden": hidden}, goals)


if __name__ == "__main__":
    raise SystemExit(main())
