"""Planning a run with `plan: auto`: measure the machine, and check a cold start that the plan cut short.

Speeds are measured within seconds, on random tokens. Knows a run's components. Refuses to know what follows from speeds
(`arpo.training.plan`).
"""

import asyncio
import time
from array import array
from collections.abc import Sequence
from random import Random

from arpo.assembly.components import Components, build_learner
from arpo.core.branching import StepStats
from arpo.core.credit import CreditedTree, ScoredTree, credit
from arpo.core.score import Score
from arpo.core.tree import Prompt, Role, RolloutTree, StopReason, Turn
from arpo.engines import Engine, SamplingParams
from arpo.learner import Learner
from arpo.learner.config import LossConfig
from arpo.recipe.run import RunConfig, plain
from arpo.recipe.train import ColdStartConfig
from arpo.rollout.collect import collect
from arpo.runs.folder import RunFolder
from arpo.sft.traces import read_traces, traces_to_trees
from arpo.tasks import Task
from arpo.training.first_step_checks import FORMAT_AND_TOOLS, Gate, check_first_step
from arpo.training.metrics import TreeStats, step_metrics
from arpo.training.plan import Counts, Lengths, Planned, Speed, plan
from arpo.training.task_sampler import first_step

_TRACES = 32  # whose tokens say how long trajectories are
_TRAINED = (4, 160)  # trajectories of a pass, and tokens of each, of which a quarter are the policy's
_SAMPLED = (16, 96, 16)  # requests at once, tokens of a prompt, tokens of a turn


async def plan_run(
    components: Components, tasks: Sequence[Task], held_out: Sequence[Task], *, cold_start: bool, spent_s: float
) -> Planned:
    """The run of `components`, cut down to what it can do within its minutes. `cold_start`: whether one is still to be
    made."""
    run = components.run
    traces = read_traces(run.cold_start, run.data.train) if run.cold_start else []
    trees = await traces_to_trees(components.agent, traces[:_TRACES], run.rollout, run.seed) if traces else []
    lengths = Lengths.from_trees(trees) if trees else Lengths.from_limits(run)
    # The plain loss: the recipe's may ask for a frozen copy of the model.
    learner = build_learner(components, loss=LossConfig(), optim=run.optim, num_updates=1, tell=lambda _: None)
    speed = await measure_speed(learner, components.agent.engine, components.agent.vocab_size)
    counts = Counts(tasks=len(tasks), held_out=len(held_out), traces=len(traces) if cold_start else 0)
    return plan(run, speed, lengths, counts, spent_s=spent_s)


async def unfit(components: Components, tasks: Sequence[Task]) -> list[Gate]:
    """Grow trees of the first step's tasks after a cold start that was cut short. Returns the gates of format and tool
    use that they fail."""
    run = components.run
    first = first_step(run, tasks)
    grown = collect(
        components.agent,
        first,
        components.reward,
        run.rollout,
        stats=StepStats(step=1),
        seed=run.seed,
        in_flight=len(first),
    )
    rollouts = [rollout async for rollout in grown]
    trees = credit([rollout.scored for rollout in rollouts], run.advantage)
    gates = check_first_step(
        step_metrics([*map(TreeStats.from_rollout, rollouts, trees)], head_tokens=run.rollout.head),
        run.train.gates,
    )
    return [gate for gate in gates if gate.what in FORMAT_AND_TOOLS and not gate.holds]


def more_cold_start(run: RunConfig, recipe: ColdStartConfig, num_traces: int) -> tuple[RunConfig, int] | None:
    """The run with a longer cold start, by a quarter of the updates of the `recipe`'s, and the number of updates that
    are done. None where twice the recipe's are done: updates in portions with a schedule each teach less than as many
    at once."""
    assert run.cold_start is not None
    full = recipe.num_updates(num_traces)
    done = run.cold_start.num_updates(num_traces)
    if done >= 2 * full:
        return None
    longer = recipe.model_copy(update={"steps": done + max(1, full // 4), "epochs": None})
    return run.model_copy(update={"cold_start": longer}), done


async def measure_speed(learner: Learner, engine: Engine, vocabulary: int) -> Speed:
    """Tokens a second through `learner` and `engine`; changes neither. `vocabulary`: size of the model's."""
    random = Random("speed")

    def tokens(count: int) -> list[int]:
        return [random.randrange(3, vocabulary) for _ in range(count)]

    paths, length = _TRAINED
    trees = [path_of_tokens(tokens(length)) for _ in range(paths)]
    first_s, then_s = (learner.time_pass(trees) for _ in range(2))  # the first allocates memory
    trained_s = min(first_s, then_s)
    requests, prompt, turn = _SAMPLED
    await asyncio.gather(*(_turn(engine, tokens(8), 2, str(number)) for number in range(requests)))  # warms up
    began = time.perf_counter()
    await asyncio.gather(*(_turn(engine, tokens(prompt), turn, str(number)) for number in range(requests)))
    sampled_s = time.perf_counter() - began
    await engine.sleep()
    return Speed(
        trained_tokens_per_s=float(f"{paths * length / trained_s:.3g}"),
        sampled_tokens_per_s=float(f"{requests * (prompt + turn) / sampled_s:.3g}"),
    )


async def _turn(engine: Engine, prompt: list[int], num_tokens: int, tree: str) -> None:
    async for _ in engine.sample(prompt, SamplingParams(max_tokens=num_tokens, seed=1, tree=f"speed {tree}")):
        pass


def path_of_tokens(tokens: list[int]) -> CreditedTree:
    """A trajectory of these tokens without calls, the last quarter written by the policy."""
    cut = 3 * len(tokens) // 4
    written = array("i", tokens[cut:])
    zeros = array("f", bytes(4 * len(written)))
    tree = RolloutTree("speed", 0, Prompt(tokens=array("i", tokens[:cut])))
    tree.grow(Turn(place=(0,), role=Role.ROOT, tokens=written, logprobs=zeros, entropies=zeros))
    tree.end((0,), StopReason.FINISHED)
    return CreditedTree(ScoredTree(tree, {(0,): Score(reward=1.0, accuracy=1.0)}), {(0,): 1.0}, {((0,), (0,)): 1.0})


UNPLANNED = "unplanned_cold_start"
"""A key of a planned run's summary, where the plan shortened the cold start: the recipe's own."""


def note_shortened(folder: RunFolder, run: RunConfig, original: RunConfig) -> None:
    """Keep the cold start of `original` in the summary where that of `run` is shorter, for `unplanned`."""
    shortened = run.cold_start != original.cold_start
    if shortened or folder.summary().get(UNPLANNED):
        folder.write_summary(**{UNPLANNED: plain(original.cold_start) if shortened else None})


def unplanned(run: RunConfig, folder: RunFolder) -> RunConfig:
    """`run` with the cold start that it had before an earlier start shortened it; as it is where none did, or where its
    cold start is no longer that of the folder's recipe."""
    cold_start = folder.summary().get(UNPLANNED)
    if not cold_start:
        return run
    if plain(run.cold_start) != folder.recipe_values().get("cold_start"):
        folder.write_summary(**{UNPLANNED: None})
        return run
    return run.model_copy(update={"cold_start": ColdStartConfig.model_validate(cold_start)})
