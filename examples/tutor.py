"""A tutor of arithmetic who remembers the lesson: exercises and their checks are tools. See docs/example-tutor.md."""

import asyncio
import sys
from collections.abc import Callable
from random import Random

import arpo
from arpo.rewards.maths import maths

RANDOM = Random()


@arpo.tool
def exercise(topic: str, level: int = 1) -> str:
    """A new exercise.

    Args:
        topic: fractions, percent or sums
        level: 1 is easy, 3 is hard
    """
    a, b, c, d = (RANDOM.randint(2, 4 + 5 * max(1, min(level, 3))) for _ in range(4))
    if topic == "fractions":
        return f"\\frac{{{a}}}{{{b}}} + \\frac{{{c}}}{{{d}}}"
    if topic == "percent":
        return f"\\frac{{{5 * a}}}{{100}} \\cdot {20 * b}"
    if topic == "sums":
        return f"{a * b} + {c * d}"
    raise arpo.ToolError(f"there are no exercises on {topic!r}: fractions, percent or sums")


@arpo.tool
def check(exercise: str, answer: str) -> str:
    """Says whether an answer to an exercise is right. Equal values are right in any form: 0.5 is 1/2."""
    return "right" if maths(answer, exercise) else "wrong"


async def lesson(agent: arpo.Agent, read: Callable[[str], str] = input, write: Callable[[str], None] = print) -> None:
    """Until the pupil says nothing more (an empty line)."""
    session = agent.session()
    while said := (await asyncio.to_thread(read, "you> ")).strip():
        async for event in session.stream(said):
            for result in getattr(event, "results", ()):
                write(f"  ({result.tool}: {result.text})")
        write(f"tutor> {event.text}")


async def main(recipe: str) -> None:
    async with arpo.Agent.load(recipe) as agent:
        await lesson(agent)


if __name__ == "__main__":  # python tutor.py tutor.yaml
    asyncio.run(main(sys.argv[1]))
