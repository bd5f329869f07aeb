"""Ask an agent questions and score what it answers. The same rollout as in training, without branches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from arpo.core.branching import StepStats
from arpo.core.tree import Branch, ToolCallResult
from arpo.evaluation.results import POWERS, Results, Sample
from arpo.rewards import Reward
from arpo.rollout.agent import EvalAgent
from arpo.rollout.collect import Rollout, check_scored, collect
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task
from arpo.tools import isolation_of
from arpo.tools.usage import usage_of

STEP = "evaluation"  # one word for all: draws must not depend on an evaluation's name
Watch = Callable[[int, int, float], None]  # questions done, questions in all, accuracy so far


async def evaluate(
    agent: EvalAgent,
    tasks: Sequence[Task],
    reward: Reward,
    rollout: RolloutConfig,
    *,
    name: str,
    model: str,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    in_flight: int = 64,
    ks: Sequence[int] = (),
    watch: Watch | None = None,
) -> Results:
    """`samples` independent answers to each of `tasks` at `temperature` (0: greedy), `in_flight` branches at a time.

    Randomness is keyed by `seed`, task and sample, so two models asked with one seed face the same draws. pass@k is given for
    `ks` besides 1, 2, 4, ... and `samples`.

    Raises EngineError (ToolError where only tools failed) where not one answer could be had.
    """
    plain = rollout.flat(leaves=samples, temperature=temperature, top_p=top_p)
    found: list[Sample] = []
    outcomes: list[ToolCallResult] = []
    first: list[Rollout] = []  # up to the first of which something has a score
    async for done in collect(
        agent, tasks, reward, plain, stats=StepStats(step=STEP), seed=seed, in_flight=max(1, in_flight // samples)
    ):
        found.extend(_samples(done))
        outcomes.extend(replace(outcome, text="") for outcome in _outcomes(done))
        if not first or not first[-1].scored.scores:
            first.append(done)
        if watch:
            watch(len(found) // samples, len(tasks), sum(s.accuracy for s in found) / max(1, len(found)))
    check_scored(first, f"evaluation {name!r}")
    settings = {"temperature": temperature, "top_p": top_p, "seed": seed, "samples": samples, "questions": len(tasks)}
    results = Results.of(name, model, found, settings=settings, ks={*ks, *POWERS, samples}, seed=seed)
    calls = usage_of(outcomes, {tool.name for tool in agent.tools})
    return replace(results, calls=calls, isolation=isolation_of(agent.tools))


def _samples(rollout: Rollout) -> list[Sample]:
    return [sample_of(rollout, branch) for branch in rollout.grown.tree.branches()]


def sample_of(rollout: Rollout, branch: Branch) -> Sample:
    """A branch that the world ended counts as wrong, and its ending says why."""
    task, leaf = rollout.task, branch.leaf
    score = rollout.scored.scores.get(leaf)
    said = rollout.transcripts.get(leaf)
    outcomes = chain(*(observation.outcomes for observation in branch.observations), rollout.grown.discarded.get(leaf, ()))
    return Sample(
        id=task.id,
        sample=leaf[0],
        family=str(task.metadata.get("family", task.source)),
        level=str(task.metadata.get("level", "")),
        accuracy=score.accuracy if score else 0.0,
        correct=bool(score and score.accuracy >= 0.5),
        reward=score.reward if score else 0.0,
        answer=said.answer if said else None,
        gold=task.answers,
        question=task.question,
        calls=sum(outcome.answered for outcome in outcomes),
        tokens=sum(rollout.grown.num_written(turn.place) for turn in branch.turns),
        ending=branch.ending.value,
        transcript=rollout.grown.text(leaf),
    )


def _outcomes(rollout: Rollout) -> Iterator[ToolCallResult]:
    """Of every call of a tree without branches."""
    for branch in rollout.grown.tree.branches():
        for observation in branch.observations:
            yield from observation.outcomes
        yield from rollout.grown.discarded.get(branch.leaf, ())
