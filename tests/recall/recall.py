"""A world for long conversations: a colour is told within the first turns and asked for in the last one. In between the
context is rewritten many times (docs/contexts.md).

    start:mill                                    the task
    <look>mill</look>        mossy:well odd:cave  nothing of use, turn after turn
    <look>mill</look>        holds:amber          in one of the first `told` turns
    <think><note>amber</note></think><look>mill</look>
    <look>mill</look>        unknown              the last turn: now the colour is to be told
    <answer>amber</answer>

The words are those of arpo.models.lab, each a token. Options: `turns`, and `told`.
"""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from arpo.core.tree import Call
from arpo.models.lab import make
from arpo.tasks import Task
from arpo.tasks.lab import COLOURS, CUES, PLACES, UNKNOWN
from arpo.tasks.traces import RecordedStep, Trace
from arpo.tools import CallContext, ToolBase, ToolResult

HEADING = "heard:"  # of the notes in a new context


def model(folder: Path) -> None:
    make(folder, hidden=64, layers=3, context=2048)


class Look(ToolBase):
    """Goes on by a turn. Its state is the number of turns."""

    name, description = "look", "Look around."
    schema = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}  # noqa: RUF012

    async def open(self, task: Task) -> list[int]:
        return [0]

    async def fork(self, state: list[int]) -> list[int]:
        return [*state]

    async def close(self, state: list[int]) -> None:
        pass

    async def __call__(self, arguments: Any, context: CallContext) -> ToolResult:
        context.state[0] += 1
        return ToolResult(text=seen(context.task, context.state[0]))


def seen(task: Task, turn: int) -> str:
    """What is seen in a turn, from 1 on."""
    world: Any = task.metadata
    if turn == world["turns"]:
        return UNKNOWN
    return f"holds:{task.answers[0]}" if turn == world["told_at"] else _nothing(Random(f"{task.id}/{turn}"))


def _nothing(random: Random) -> str:
    return " ".join(f"{random.choice(CUES)}:{random.choice(PLACES)}" for _ in range(4))


def tasks(split: str, turns: int = 200, told: int = 10) -> list[Task]:
    made = []
    for number in range({"train": 4000}.get(split, 200)):
        random = Random(f"recall/{split}/{number}")
        message = {"role": "user", "content": f"start:{random.choice(PLACES)}"}
        world = {"turns": turns, "told_at": random.randint(1, told), "question": f"{split} {number}"}
        answers = (random.choice(COLOURS),)
        made.append(Task(id=f"recall/{split}/{number}", messages=(message,), answers=answers, metadata=world))
    return made


def traces(limit: int | None = None, seed: int = 0, **options: Any) -> list[Trace]:
    """A forgetful agent in short conversations: it notes every other colour, and answers what it has read, or guesses.
    Some begin where a context was rewritten."""
    return [_forgetful(task, Random(f"{task.id}/{seed}")) for task in tasks("train", **options)[:limit]]


def _forgetful(task: Task, random: Random) -> Trace:
    colour, turns, place = task.answers[0], random.randint(2, 20), task.messages[0]["content"].partition(":")[2]
    told_at, notes = random.randint(1, turns - 1), random.random() < 0.5
    rewritten = random.random() < 0.6
    if rewritten:
        told_at = 0
        memory = f"\n\n{HEADING}\n{colour}" if notes else ""
        task = replace(task, messages=({"role": "user", "content": f"start:{place}{memory}"},))
    steps = []
    for turn in range(1, turns + 1):
        thought = f"<note>{colour}</note>" if notes and told_at and turn == told_at + 1 else ""
        result = UNKNOWN if turn == turns else f"holds:{colour}" if turn == told_at else _nothing(random)
        calls = (Call(name="look", arguments={"place": place}),)
        steps.append(RecordedStep(thought=thought, calls=calls, results=(result,)))
    known = not rewritten or notes
    return Trace(task, (*steps, RecordedStep(answer=colour if known else random.choice(COLOURS))))
