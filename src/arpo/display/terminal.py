"""The terminal: the one console through which everything is printed.

What is printed may come from anywhere (a data set's names, a tool's description, a model's text), so a text is no
markup, and no character in it controls the terminal or hides anything. Styles are given as styles.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from arpo.terminal_safe import terminal_safe


class Console(RichConsole):
    """A rich console whose texts are shown as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(terminal_safe(text), style)
