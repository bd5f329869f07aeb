"""Makes text from a model or a tool safe for a terminal: it must not control the terminal or hide anything."""

import re

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
