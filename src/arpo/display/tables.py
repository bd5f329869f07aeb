"""Tables as markdown, and in a terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTable:
    """A table for terminals and reports."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1  # the first columns, which hold text

    def markdown(self) -> str:
        note = f"\n\n{self.note}" if self.note else ""
        return f"## {self.title}\n\n{markdown_table(self.head, self.rows, left=self.left)}{note}"

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for number, name in enumerate(self.head):
            longest = max(map(len, name.split()), default=1)  # no word of a header is broken
            justify: Literal["left", "right"] = "right" if number >= self.left else "left"
            table.add_column(Text(name), justify=justify, overflow="fold", min_width=longest)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


_MARKUP = re.compile(r"[|<\\]|\](?=[(\[])")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """The first `left` columns are aligned left, the others right. HTML, links and images in a cell are shown as
    they are written."""
    cells = [[_MARKUP.sub(r"\\\g<0>", str(cell)).replace("\n", " ") for cell in row] for row in rows]
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *cells])
