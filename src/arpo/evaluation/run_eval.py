"""Generate the samples that an evaluation lacks, store them and compute the figures: of held-out tasks and benchmarks
alike.

Knows the order of things in one folder. Every sample is on disk before the next one counts. Refuses to know where a
model comes from: `evaluate` (the command) and training bring its components.
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo.assembly.components import EvalComponents
from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.core.tree import StopReason, ToolCallResult
from arpo.display.progress import EvalProgress
from arpo.display.terminal import Console
from arpo.errors import ArpoError, EngineError, RewardError, ToolError
from arpo.evaluation.generate import EvalQuestion, generate
from arpo.evaluation.manifest import EvalManifest, open_evaluation
from arpo.evaluation.questions import BenchmarkQuestions, EvalSpec
from arpo.evaluation.results import FILE as RESULTS
from arpo.evaluation.results import EvalResults, read_results, summarise
from arpo.evaluation.samples import NOT_SCORED, SampleLog, SampleRecord, read_samples
from arpo.evaluation.trajectories import read_recorded
from arpo.rewards import Reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.tasks import Task
from arpo.tools import isolation_of
from arpo.tools.usage import as_study, together, usage_of

GIVE_UP = 64  # samples of which all failed: what stands behind the engine or a tool is down


async def evaluate_tasks(
    components: EvalComponents,
    tasks: Sequence[Task],
    spec: EvalSpec,
    folder: Path,
    *,
    model: str,
    split: str,
    console: Console,
) -> EvalResults:
    """Ask a run's model the first of `tasks`, those of its `split`, and keep everything in `folder`; `model`: its name
    there.

    What an earlier start of the run has asked of the same model is not asked again; samples of something else step
    aside. Raises EngineError, ToolError or RewardError where not one sample could be had.
    """
    held_out = BenchmarkQuestions.from_tasks(split, tasks).part(limit=spec.questions)
    manifest = EvalManifest.from_run(components.run, spec, [held_out], model=model)
    with open_evaluation(folder, manifest, resume=True, replace_other=True) as whole:
        return await run_eval(components, [held_out], spec, whole, folder, console=console)


async def run_eval(
    components: EvalComponents,
    benchmarks: Sequence[BenchmarkQuestions],
    spec: EvalSpec,
    manifest: EvalManifest,
    folder: Path,
    *,
    console: Console,
    again: bool = False,
) -> EvalResults:
    """Generate what `folder` lacks of `spec` for `benchmarks`, and write its results.json, whatever happens.

    `manifest`: of all that the folder holds, as `open_evaluation` gives it. `again`: failed samples count as lacking.
    """
    left, began = missing(folder, benchmarks, spec.samples, again=again), time.monotonic()
    tools = components.agent.tools
    earlier, outcomes = _earlier_calls(folder, {tool.name for tool in tools}), list[ToolCallResult]()
    try:
        if left:
            await _generate(components, benchmarks, left, spec, folder, outcomes, console)
    finally:
        calls = together([earlier, usage_of(outcomes, {tool.name for tool in tools})])
        studies = {"tools": as_study(calls, isolation_of(tools))} if calls else {}
        results = summarise(folder, manifest, studies=studies, seconds=time.monotonic() - began if left else 0.0)
    if results is None:
        raise EngineError(f"evaluation {manifest.name!r}: nothing was answered")
    return results


def missing(
    folder: Path, benchmarks: Sequence[BenchmarkQuestions], samples: int, *, again: bool = False
) -> list[EvalQuestion]:
    """What is asked and `folder` lacks: the first sample of every question before the second of any, so that an early
    stop says most."""
    done = {key for key, sample in read_samples(folder).items() if not (again and sample.failed)}
    return [question for question in _questions(benchmarks, samples) if question.key not in done]


def _questions(benchmarks: Sequence[BenchmarkQuestions], samples: int) -> Iterator[EvalQuestion]:
    for number in range(samples):
        for each in benchmarks:
            yield from (EvalQuestion(each.name, task, number) for task in each.tasks)


async def _generate(
    components: EvalComponents,
    benchmarks: Sequence[BenchmarkQuestions],
    left: Sequence[EvalQuestion],
    spec: EvalSpec,
    folder: Path,
    outcomes: list[ToolCallResult],
    console: Console,
) -> None:
    """Write a sample for each of `left`; `outcomes` collects those of tool calls, without their texts."""
    rollout = components.run.rollout.flat(leaves=1, temperature=spec.temperature, top_p=spec.top_p)
    reward = _reward(components, {each.name: each for each in benchmarks})
    num_asked = spec.samples * sum(len(each.tasks) for each in benchmarks)
    answered = any(not sample.failed for sample in read_samples(folder).values())
    failed: list[SampleRecord] | None = None if answered else []  # None: something was answered
    coming = generate(components.agent, left, reward, rollout, seed=spec.seed, in_flight=components.run.engine.slots)
    progress = EvalProgress(console, num_asked, title=spec.name, before=num_asked - len(left))
    with SampleLog(folder) as log, progress:
        async with aclosing(coming):
            async for each in coming:
                log.append(each.sample, each.record)
                outcomes += [replace(outcome, text="") for outcome in each.outcomes]
                progress.add(each.sample.accuracy, failed=each.sample.failed)
                failed = None if failed is None or not each.sample.failed else [*failed, each.sample]
                if failed is not None and len(failed) >= GIVE_UP:
                    break
    if failed:
        raise _nothing_answered(spec.name, failed)


def _nothing_answered(name: str, failed: Sequence[SampleRecord]) -> ArpoError:
    endings = {sample.ending for sample in failed}
    by_tools = {StopReason.TOOL_FAILED, StopReason.REPLAY_MISS}
    kind = RewardError if endings == {NOT_SCORED} else ToolError if endings <= by_tools else EngineError
    return kind(
        f"evaluation {name!r}: not one of the first {len(failed)} questions could be answered. First cause: "
        f"{failed[0].failure}. What was asked is kept: go on with --resume --again once the cause is gone"
    )


def _earlier_calls(folder: Path, tools: Container[str]) -> Mapping[str, Any]:
    """The tool calls of earlier starts: from their results.json, or from the trajectories where a start was killed."""
    samples = read_samples(folder)
    if not samples:
        return {}
    if (folder / RESULTS).is_file():
        results = read_results(folder)
        if sum(each.answers for each in results.benchmarks) == len(samples):
            return results.tool_calls
    trees = (each.record.tree for each in read_recorded(folder))
    return usage_of((call for tree in trees for seen in tree.observations.values() for call in seen.outcomes), tools)


def public_reward(config: RewardConfig | Callable[..., Any]) -> RewardConfig:
    """The reward of public benchmarks, in an evaluation of a recipe with the reward `config`."""
    settings = {"answer": "auto", "bonus": 0.0, "bonus_tools": ()}
    if not isinstance(config, RewardConfig) or config.use:
        return RewardConfig()
    return config.model_copy(update=settings)


def _reward(components: EvalComponents, benchmarks: Mapping[str, BenchmarkQuestions]) -> Reward:
    """A public benchmark is scored by its own measure, whatever the recipe trains on; other questions by the recipe's
    reward."""
    if not any(each.public for each in benchmarks.values()):
        return components.reward
    public = build_reward(public_reward(components.run.reward))

    async def reward(task: Task, transcript: Transcript) -> Score:
        is_public = (each := benchmarks.get(task.source)) is not None and each.public
        return await (public if is_public else components.reward)(task, transcript)

    return reward
