"""Trees written by hand for studies: turns with their entropies, calls with their outcomes."""

from array import array
from collections.abc import Sequence

from arpo.core.branching import Never, StepStats
from arpo.core.expansion import Expansion
from arpo.core.record import TreeRecord
from arpo.core.score import Score
from arpo.core.tree import Call, CallStatus, Observation, Prompt, Role, RolloutTree, StopReason, ToolCallResult, Turn
from arpo.evaluation.trajectories import Recorded

Told = tuple[str, dict[str, object], CallStatus, str]  # tool, arguments, status, text


def recorded(
    task: str,
    heads: Sequence[Sequence[float]],
    calls: Sequence[Sequence[Told]] = (),
    *,
    golds: Sequence[str] = ("Lima",),
    right: bool = True,
    expected: Sequence[dict[str, object]] = (),
    width: float = 0.0,
    head: int = 2,
) -> Recorded:
    """One trajectory: `heads` are the entropies of its turns, `calls` those of each turn but the last."""
    tree = RolloutTree(task, 0, Prompt(tokens=array("i", [1])))
    for depth, entropies in enumerate(heads):
        place = (0,) * (depth + 1)
        told = calls[depth] if depth < len(calls) else ()
        low, high = (array("f", [max(0.0, h + sign * width) for h in entropies]) for sign in (-1, 1))
        turn = Turn(
            place=place,
            role=Role.ROOT if depth == 0 else Role.PROBE,
            tokens=array("i", range(len(entropies))),
            logprobs=array("f", [-h for h in entropies]),
            entropies=array("f", entropies),
            bounds=(low, high) if width else None,
            calls=tuple(Call(name=name, arguments=arguments) for name, arguments, _, _ in told),
        )
        tree.grow(turn)
        if depth < len(heads) - 1:
            outcomes = tuple(ToolCallResult(tool=name, status=status, text=text) for name, _, status, text in told)
            tree.grow(Observation(place=place, tokens=array("i", [7]), outcomes=outcomes))
    leaf = (0,) * len(heads)
    tree.end(leaf, StopReason.FINISHED)
    config = Expansion(
        RolloutTree(task, 0, Prompt(tokens=array("i", [1]))),
        leaves=1,
        roots=1,
        rule=Never(),
        head=head,
        vocab_size=100,
        stats=StepStats(step=0),
        seed=0,
        deepest=9,
    ).config
    notes = {"task": {"id": task, "answers": list(golds), **({"calls": list(expected)} if expected else {})}}
    scores = {leaf: Score(reward=float(right), accuracy=float(right))}
    record = TreeRecord(config=config, tree=tree, events=(), decisions={}, scores=scores, notes=notes)
    return Recorded(question=task, record=record)
