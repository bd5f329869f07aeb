"""Finds the final answer in a text: in `<answer>` tags or in `\\boxed{}`.

Knows both marks. Refuses to know whether the answer is right.
"""

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def enclosed(text: str, tag: str) -> tuple[list[str], str]:
    """The texts between each `<tag>` and the next `</tag>`, from left to right, and the rest of the text.

    Takes linear time: a model that repeats itself may open a thousand tags and close none.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    inside, outside, at = [], [], 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start)) >= 0:
        inside.append(text[start + len(opening) : end])
        outside.append(text[at:start])
        at = end + len(closing)
    return inside, "".join([*outside, text[at:]])


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of `text`, or None. Braces nest as in LaTeX (`\{` does not count)."""
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
        limit = match.end() - 1  # this box never closes, so an earlier box closes before it or never
    return None


def unwrapped(text: str) -> str:
    """The content of the box in `text`, or `text` if it has no box."""
    inner = boxed(text)
    return text.strip() if inner is None else inner


def final_answer(text: str) -> str | None:
    """The answer of a final message: the content of the last answer tags, else of the last box, else the whole message;
    None if that is empty."""
    tagged, _ = enclosed(text, "answer")
    return unwrapped(tagged[-1] if tagged else text) or None
