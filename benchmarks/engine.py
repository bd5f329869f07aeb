"""What the rollout costs an engine: its throughput under our driver and without it, forks, new weights, and whole
steps.

    .venv-vllm/bin/arpo bench engine                                    vLLM in this process (make vllm)
    arpo bench engine -- --python .venv-vllm/bin/python                 behind a server of its own
    arpo bench engine -- --device cuda                                  on a GPU

The quickstart's trees grow on the engine with its tools, which answer within milliseconds. Then the requests that this
made are sent again without trees, tools, chat and credit, straight to vLLM where it is in this process: each as soon as
what it had waited for (another turn's end or head) is there, with as many tokens and the same log-probabilities asked
for. Both begin with no known prefix, in turn. Then weights are handed over, and short runs are trained with sampling in
turn and one step ahead.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _figures
from _requests import Noting, Request, Write, replay, unique_tokens

from arpo.assembly.components import Components, build_components
from arpo.core.branching import StepStats
from arpo.display.terminal import Console
from arpo.engines import SamplingParams, Weights
from arpo.errors import ArpoError
from arpo.learner.lora import published_state
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.rollout.collect import collect
from arpo.runs.folder import RunFolder
from arpo.sft.cache import SFTCache
from arpo.training.pipeline import train
from arpo.training.preflight import prepare

RECIPE, SEED = "quickstart_vllm", 11


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    if options.quick:
        options.tasks, options.rounds, options.steps = 2, 1, min(options.steps, 2)
    try:
        with tempfile.TemporaryDirectory(prefix="arpo-engine-") as folder:
            steps = [_steps(options, Path(folder), staleness) for staleness in (0, 1) if options.steps]
            run = load_recipe(RECIPE, _overrides(options))
            if SFTCache(run).model is None:
                _train(options, Path(folder) / "start", "train.steps=1", *_overrides(options))  # keeps its cold start
            figures, goals = asyncio.run(_measure(options, run))
    except ArpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if steps:
        in_turn, ahead = steps
        figures["steps"] = {"staleness 0": in_turn, "staleness 1": ahead}
        goals.append(
            _figures.at_most(f"{options.steps} steps one ahead over {options.steps} in turn", 1.0, ahead / in_turn)
        )
        print(f"{options.steps} training steps: {in_turn:.1f} s in turn, {ahead:.1f} s one step ahead")
    return _figures.finish("engine", figures, goals)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="arpo bench engine --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the run: rollout.leaves=16")
    parser.add_argument(
        "--python", metavar="PATH", help="of an environment with vLLM, for a server (default: in process)"
    )
    parser.add_argument("--device", default="auto", help="as model.device in a recipe")
    parser.add_argument("--tasks", type=int, default=8, help="trees that grow at the same time (default: 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="training steps in turn and ahead (default: 10; 0: none)")
    parser.add_argument("--quick", action="store_true", help="two trees, one round, two steps: to see that it works")
    return parser


def _overrides(options: argparse.Namespace) -> list[str]:
    served = [f"engine.vllm={{replicas: 1, python: {options.python}}}"] if options.python else []
    step = [f"train.tasks_per_step={options.tasks}", f"train.updates_per_step={min(2, options.tasks)}"]
    return [f"model.device={options.device}", *step, *served, *options.overrides]


# --- whole steps


def _steps(options: argparse.Namespace, folder: Path, staleness: int) -> float:
    """Seconds of the steps of a run of their own, its first one (in which the engine starts) left out."""
    planned = f"train.steps={options.steps + 1}", f"train.max_staleness={staleness}"
    history = _train(options, folder / f"steps-{staleness}", *planned, *_overrides(options))
    return sum(float(line["seconds/step"]) for line in history[1:])


def _train(options: argparse.Namespace, out: Path, *settings: str) -> list[dict[str, Any]]:
    plain = (
        "train.minutes=null",
        "train.gates=null",
        "train.eval_every=null",
        "train.save_every=null",
        "data.test=null",
    )
    train(load_recipe(RECIPE, [*plain, *settings]), out=out, console=Console(stderr=True, soft_wrap=True))
    return RunFolder(out).metrics()


# --- the engine


async def _measure(options: argparse.Namespace, run: RunConfig) -> tuple[dict[str, Any], list[_figures.Goal]]:
    prepared = prepare(run)
    components = build_components(run, prepared.source, SFTCache(run).model, setting=prepared.setting)
    engine: Any = components.agent.engine
    try:
        tasks = prepared.tasks["train"][: options.tasks]
        await _rollout(components, tasks)  # the engine starts, and what is looked up once is
        rounds = [await _round(components, tasks, forwards=number % 2 == 0) for number in range(options.rounds)]
        loads = [await _load(engine, components.model, version) for version in range(1, options.rounds + 1)]
    finally:
        await engine.close()
    middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    loaded = {name: statistics.median(one[name] for one in loads) for name in loads[0]}
    print(
        f"{middle['requests']:.0f} requests, {middle['tokens']:.0f} tokens: {middle['ours_tokens_per_s']:.0f} "
        f"tokens/s under the rollout, {middle['bare_tokens_per_s']:.0f} without it"
    )
    print(
        f"prompts: {middle['computed']:.0f} tokens computed, {middle['unique']:.0f} unique, {middle['flat']:.0f} sent"
    )
    print(f"new weights: {loaded['seconds']:.2f} s in all, of which the engine stands {loaded['taken_s']:.2f} s")
    goals = [_figures.at_least("throughput under the rollout over the same requests without it", 0.95, middle["ratio"])]
    again = (middle["computed"] - middle["unique"]) / middle["requests"]
    block = 32 if components.model.device.type == "cpu" else 16
    goals.append(_figures.at_most(f"blocks of {block} tokens computed again, a request", 1.0, again / block))
    figures = {"rollout": middle, "rounds": rounds, "weights": loaded, "served": bool(options.python)}
    figures["device"] = str(components.model.device)
    return figures, goals


async def _rollout(components: Components, tasks: Sequence[Any]) -> tuple[Noting, float]:
    noting = Noting(components.agent.engine)
    agent = replace(components.agent, engine=noting)
    began = time.perf_counter()
    rollouts = collect(
        agent,
        tasks,
        components.reward,
        components.run.rollout,
        stats=StepStats(step=1),
        seed=SEED,
        in_flight=len(tasks),
    )
    async for _ in rollouts:
        pass
    return noting, time.perf_counter() - began


async def _round(components: Components, tasks: Sequence[Any], *, forwards: bool) -> dict[str, float]:
    """The rollout and its requests alone; backwards, the rollout is timed after them."""
    engine: Any = components.agent.engine
    await _forget(engine, components.model)
    computed = engine.stats.prefill_tokens
    noted, ours_s = await _rollout(components, tasks)
    computed = engine.stats.prefill_tokens - computed
    requests = noted.requests()
    tokens = sum(len(one.tokens) for one in noted.asked)
    await _forget(engine, components.model)
    bare_s = await _bare(engine, requests)
    if not forwards:
        await _forget(engine, components.model)
        noted_again, ours_s = await _rollout(components, tasks)
        tokens_again = sum(len(one.tokens) for one in noted_again.asked)
        ours_s *= tokens / tokens_again  # seeds are the same; batches may differ in their last bits
    return {
        "ratio": bare_s / ours_s,
        "ours_s": ours_s,
        "bare_s": bare_s,
        "requests": len(requests),
        "tokens": tokens,
        "ours_tokens_per_s": tokens / ours_s,
        "bare_tokens_per_s": tokens / bare_s,
        "computed": computed,
        "unique": unique_tokens(noted.asked),
        "flat": sum(len(one.prompt) for one in noted.asked),
    }


async def _bare(engine: Any, requests: Sequence[Request]) -> float:
    """Seconds of the requests: straight to vLLM, on the loop that serves it, where it is in this process."""
    llm = getattr(getattr(engine, "form", None), "llm", None)

    async def timed(write: Write) -> float:
        began = time.perf_counter()
        tokens = await replay(requests, write)
        assert tokens == sum(one.params.max_tokens for one in requests)
        return time.perf_counter() - began

    if llm is None:
        return await timed(lambda prompt, params: _through(engine, prompt, params))
    top_k, adapter = engine.form.settings.vllm.top_k, engine.form._adapter
    return await engine._on_thread(timed(lambda prompt, params: _straight(llm, top_k, adapter, prompt, params)))


async def _through(engine: Any, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Sequence[int]]:
    async for chunk in engine.sample(prompt, params):
        yield chunk.tokens


async def _straight(
    llm: Any, top_k: int, adapter: Any, prompt: Sequence[int], params: SamplingParams
) -> AsyncIterator[Sequence[int]]:
    import vllm
    from vllm.sampling_params import RequestOutputKind

    asked = vllm.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        ignore_eos=True,
        logprobs=top_k,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    async for output in llm.generate({"prompt_token_ids": list(prompt)}, asked, uuid.uuid4().hex, lora_request=adapter):
        yield output.outputs[0].token_ids


async def _forget(engine: Any, model: Any) -> None:
    """No prefix is known: vLLM drops what it knows with its weights."""
    await engine.update_weights(Weights(engine.version, published_state(model)))


async def _load(engine: Any, model: Any, version: int) -> dict[str, float]:
    before, began = engine.stats.load_s, time.perf_counter()
    await engine.update_weights(Weights(version, published_state(model)))
    return {"seconds": time.perf_counter() - began, "taken_s": engine.stats.load_s - before}


if __name__ == "__main__":
    raise SystemExit(main())
