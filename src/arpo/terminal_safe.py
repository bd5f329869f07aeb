"""Makes text from a model or a tool safe for a terminal: it must not control the terminal or hide anything."""

import re
import sys
from typing import IO

# control characters, zero-width characters, bidirectional controls and lone surrogates; the viewer's page escapes the
# same
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff"
    r"\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def terminal_safe(text: str) -> str:
    """`text` with every invisible or controlling character replaced by its code point: `⟨U+202E⟩`. Tabs and newlines
    stay."""
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def print_line(text: object, file: IO[str] | None = None, end: str = "\n") -> None:
    """Print `text`, made safe; `file`: stdout where it is None."""
    print(terminal_safe(str(text)), file=file or sys.stdout, end=end, flush=True)


def json_safe(text: str) -> str:
    """A JSON text with every such character as an escape: the same value, and safe to show. What JSON itself puts
    between values, blanks and line ends, stays."""

    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return _INVISIBLE.sub(escaped, text)
