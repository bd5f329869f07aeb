"""Places in a tree, and randomness keyed by them.

A place is the tuple of child numbers on the way from the prompt to a turn: `(2,)` is root 2, `(2, 0)` is the probe that
continues after root 2's tool result, and `(2, 1)` is the first sibling forked there. Places do not depend on timing, so
neither does anything keyed by them. Sorting places gives preorder.
"""

from random import Random

Place = tuple[int, ...]
Step = int | str  # a training step, or a fixed word ("test") in evaluation


def show(place: Place) -> str:
    """`(2, 0, 1)` as `"2.0.1"`; the prompt is `"-"`."""
    return ".".join(map(str, place)) or "-"


def keyed(seed: int, step: Step, task: str, place: Place, purpose: str, attempt: int = 0) -> Random:
    """The random generator for one purpose at one place. Equal arguments give equal numbers on any machine."""
    suffix = f"/{attempt}" if attempt else ""
    key = f"{seed}/{step}/{task}/{show(place)}/{purpose}{suffix}"
    return Random(key.encode("utf-8", "surrogatepass"))  # seeds as the text does, which may not hold a lone surrogate


def read_place(text: str) -> Place:
    """The inverse of `show`. Raises ValueError if `text` is not a place."""
    return () if text == "-" else tuple(map(int, text.split(".")))
