"""Where an answer stands in text: `<answer>` marks and `\\boxed{}`.

Knows both marks. Refuses to know whether the answer is right.
"""

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def enclosed(text: str, tag: str) -> tuple[list[str], str]:
    """What stands between `<tag>` and the next `</tag>`, from left to right, and the text without all that. In linear time: a model
    that repeats itself may open a thousand tags and close none."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    inside, outside, at = [], [], 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start)) >= 0:
        inside.append(text[start + len(opening) : end])
        outside.append(text[at:start])
        at = end + len(closing)
    return inside, "".join([*outside, text[at:]])


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` of `text`, braces nested as LaTeX does (`\{` counts for none); None without one."""
    limit = len(text)
    for match in reversed(list(BOX.finditer(text))):
        depth, at = 1, match.end()
        while at < limit:
            if text[at] == "\\":
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[match.end() : at].strip()
            at += 1
        limit = match.end() - 1  # a box before this one, which never closes, closes before it or never
    return None


def unwrapped(text: str) -> str:
    """`text` without its box, where it has one."""
    inner = boxed(text)
    return text.strip() if inner is None else inner


def final_answer(text: str) -> str | None:
    """The answer of a final message: what stands in the last answer marks, else in the last box, else all of it; None if empty."""
    marked, _ = enclosed(text, "answer")
    return unwrapped(marked[-1] if marked else text) or None
