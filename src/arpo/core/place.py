"""Places in a tree, and randomness keyed by them.

A place is the tuple of child numbers that leads from the prompt to a turn: `(2,)` is root 2, `(2, 0)` the probe that goes on
after root 2's tool result, `(2, 1)` the first sibling forked there. Places do not depend on timing, so neither does anything
keyed by them. Sorting places gives preorder.
"""

from random import Random

Place = tuple[int, ...]
Step = int | str  # a training step, or a fixed word ("test") in evaluation


def show(place: Place) -> str:
    """`(2, 0, 1)` as `"2.0.1"`; the prompt is `"-"`."""
    return ".".join(map(str, place)) or "-"


def keyed(seed: int, step: Step, task: str, place: Place, purpose: str, attempt: int = 0) -> Random:
    """The random source of one purpose at one place: equal arguments give equal numbers, on any machine."""
    again = f"/{attempt}" if attempt else ""
    key = f"{seed}/{step}/{task}/{show(place)}/{purpose}{again}"
    return Random(key.encode("utf-8", "surrogatepass"))  # the same as from the text, which must not hold half a character


def read_place(text: str) -> Place:
    """The inverse of `show`. Raises ValueError where `text` is no place."""
    return () if text == "-" else tuple(map(int, text.split(".")))
