"""Text that a model or a tool wrote, for a terminal: it must not steer the terminal, nor hide anything."""

import re

# control signs, those without width, those that turn the direction of writing, and halves of characters; the page hides the same
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff"
    r"\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def terminal_safe(text: str) -> str:
    """Signs that are not seen, or that act on what is around them, by their number: `⟨U+202E⟩`. Tabs and line ends stay."""
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)
