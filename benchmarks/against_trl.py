"""A training step beside TRL's GRPOTrainer: seconds by phase, and the same loss on the same trajectories.

Same model, tasks, tools, leaves, lengths, precision and chat template; the sides take turns in one process. A round is
one step of TRL, one of ours with the rule `none` (GRPO, as TRL does it), and one of ours with ARPO. Then TRL's
completions go through both losses in float32.

    python benchmarks/against_trl.py [--rounds 3] [--quick] [--out runs/against-trl]

Needs the extra `bench` (TRL 1.16) and memory for two trained copies of the model. The first run makes a model that
calls tools: a cold start of a few minutes, kept in OUT.

What differs: TRL generates in rounds of padded batches and runs the calls of one trajectory after those of another;
ours overlap. TRL has no limit a turn, so our turns may be as long as a completion. Rewards are the same rule, each
side's own code.
"""

import argparse
import asyncio
import copy
import os
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from _figures import Goal, at_most, finish
from _same_loss import compare
from _shared_model import FAMILIES, prepared
from _trl_side import make_trainer, same_prompts

from arpo.assembly.components import Components, build_components, build_learner
from arpo.core import Paper, StepStats
from arpo.core.credit import credit
from arpo.engines import Weights
from arpo.errors import ArpoError
from arpo.recipe.run import RunConfig
from arpo.rollout.collect import collect
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task, atlas

Figures = dict[str, float]


class Ours:
    """Our side: one learner and one engine, which make steps with any rollout config."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.components: Components = build_components(run, Path(run.model.source))
        self.learner = build_learner(self.components, optim=run.optim, num_updates=1000, tell=print)

    def step(self, tasks: Sequence[Task], config: RolloutConfig, number: int) -> Figures:
        return asyncio.run(self._step(tasks, config, number))

    async def _step(self, tasks: Sequence[Task], config: RolloutConfig, number: int) -> Figures:
        components, marks = self.components, [time.perf_counter()]
        cpu = time.process_time()
        rollouts = [
            rollout
            async for rollout in collect(
                components.agent,
                tasks,
                components.reward,
                config,
                stats=StepStats(step=number),
                seed=self.run.seed,
                in_flight=len(tasks),
            )
        ]
        marks.append(time.perf_counter())
        credited = credit([rollout.scored for rollout in rollouts], self.run.advantage)
        trained = self.learner.update(credited).metrics
        marks.append(time.perf_counter())
        await components.agent.engine.update_weights(Weights(number, self.learner.weights()))
        marks.append(time.perf_counter())
        trees = [rollout.grown.tree for rollout in rollouts]
        return {
            "step": marks[-1] - marks[0],
            "cpu": time.process_time() - cpu,
            **{
                name: b - a for name, (a, b) in zip(("sampling", "update", "publication"), pairwise(marks), strict=True)
            },
            "trajectories": sum(len(tree.leaves()) for tree in trees),
            "tokens_sampled": sum(len(turn.tokens) for tree in trees for turn in tree.turns.values()),
            "tool_calls": sum(len(seen.outcomes) for tree in trees for seen in tree.observations.values()),
            "tokens_computed": trained.get("tokens_trained", 0.0),
            "tokens_trained": trained.get("tokens_flat", 0.0),
        }


def prompts(ours: Ours, tasks: Sequence[Task]) -> list[Sequence[int]]:
    chat, tools = ours.components.agent.chat(tasks[0])
    return [chat.render(task, tools) for task in tasks]


def run_rounds(given: argparse.Namespace, run: RunConfig) -> dict[str, Any]:
    tasks = atlas.tasks("train", FAMILIES)
    random.Random(given.seed).shuffle(tasks)
    rounds = given.rounds + 1  # the first one warms up
    tasks = tasks[: rounds * given.tasks]
    run = run.model_copy(update={"model": run.model.model_copy(update={"dtype": given.dtype})})
    run = run.model_copy(update={"engine": run.engine.model_copy(update={"dtype": given.dtype})})
    ours = Ours(run)
    flat = run.rollout.model_copy(update={"branch_tokens": max(map(len, prompts(ours, tasks))) + given.completion})
    arpo = flat.model_copy(update={"rule": Paper(), "roots": max(1, round(given.leaves * 3 / 8))})
    start = copy.deepcopy(ours.components.model)
    seen: dict[str, list[Figures]] = {"trl": [], "none": [], "arpo": []}
    last: list[dict[str, Any]] = []

    def after_step(figures: Figures, batch: dict[str, Any]) -> None:
        number = len(seen["trl"])
        part = tasks[number * given.tasks : (number + 1) * given.tasks]
        seen["trl"].append(figures)
        seen["none"].append(ours.step(part, flat, number))
        seen["arpo"].append(ours.step(part, arpo, number))
        last[:] = [batch]
        for side, all_of in seen.items():
            shown = " ".join(f"{name} {value:.4g}" for name, value in all_of[-1].items())
            print(f"{'warm-up' if not number else f'round {number}'} {side:5} {shown}", flush=True)

    make = partial(
        make_trainer,
        run,
        tokenizer=ours.components.tokenizer,
        tasks=tasks,
        tool=ours.components.agent.tools[0],
        steps=rounds,
        tasks_per_step=given.tasks,
        completion=given.completion,
        out=given.out / "trl",
    )
    trainer = make(copy.deepcopy(start), bf16=given.dtype == "bfloat16", after_step=after_step)
    if not same_prompts(trainer, prompts(ours, tasks[: given.tasks])):
        raise SystemExit(
            "error: TRL's prompts are not ours: this comparison was written for the TRL in constraints.txt"
        )
    trainer.train()
    same = compare(make(start, bf16=False, after_step=after_step), last[0], run, groups=min(given.tasks, 2))
    middle = {
        side: {name: statistics.median(each[name] for each in all_of[1:]) for name in all_of[0]}
        for side, all_of in seen.items()
    }
    return {"median": middle, "rounds": {side: all_of[1:] for side, all_of in seen.items()}, "same_loss": same}


def ratios(rounds: dict[str, list[Figures]]) -> Figures:
    """Ours to TRL's, the median over rounds of ratios within a round."""
    found = {}
    for side in ("none", "arpo"):
        pairs = list(zip(rounds[side], rounds["trl"], strict=True))
        for name in ("step", "cpu", "sampling", "update"):
            found[f"{side}_{name}"] = statistics.median(mine[name] / theirs[name] for mine, theirs in pairs)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=8, help="tasks a step")
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument(
        "--completion", type=int, default=192, help="most tokens after the prompt, tool results included"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of matrix products, on both sides"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where the shared model is kept (runs/against-trl)")
    parser.add_argument("--updates", type=int, help="of the cold start (default: what it takes to call tools)")
    parser.add_argument("--quick", action="store_true", help="a model of two layers, two rounds of four tasks")
    given = parser.parse_args(argv)
    if given.quick:
        given.rounds, given.tasks = min(given.rounds, 2), min(given.tasks, 4)
    given.out = given.out or Path("runs") / ("against-trl-quick" if given.quick else "against-trl")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        run = prepared(
            given.out, quick=given.quick, completion=given.completion, leaves=given.leaves, updates=given.updates
        )
    except ArpoError as error:
        raise SystemExit(f"error: {error}") from error
    given.dtype = _dtype(given.dtype)
    figures = {**run_rounds(given, run), "dtype": given.dtype, "completion": given.completion, "leaves": given.leaves}
    figures["ratios"] = ratios(figures["rounds"])
    goals: list[Goal] = [
        at_most("our step to TRL's, rule none, same model and tasks", 0.5, figures["ratios"]["none_step"]),
        at_most("our step to TRL's, ARPO", 0.5, figures["ratios"]["arpo_step"]),
        at_most(
            "relative difference of the losses on TRL's trajectories, float32",
            1e-4,
            figures["same_loss"]["loss_relative"],
        ),
        at_most("the same of their gradients", 1e-4, figures["same_loss"]["gradient_relative"]),
    ]
    return finish("against_trl", figures, goals)


def _dtype(asked: str) -> str:
    from arpo.engines.config import has_fast_bf16

    return asked if asked != "auto" else "bfloat16" if has_fast_bf16() else "float32"


if __name__ == "__main__":
    raise SystemExit(main())
