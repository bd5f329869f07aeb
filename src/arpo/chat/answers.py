"""Where an answer stands in text: `<answer>` marks and `\\boxed{}`.

Knows both marks. Refuses to know whether the answer is right.
"""

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` of `text`, braces nested as LaTeX does (`\{` counts for none); None without one."""
    for start in reversed([match.end() for match in BOX.finditer(text)]):
        depth, at = 1, start
        while at < len(text):
            if text[at] == "\\":
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
            at += 1
    return None


def unwrapped(text: str) -> str:
    """`text` without its box, where it has one."""
    inner = boxed(text)
    return text.strip() if inner is None else inner


def final_answer(text: str) -> str | None:
    """The answer of a final message: what stands in the last answer marks, else in the last box, else all of it; None if empty."""
    marked = ANSWER.findall(text)
    return unwrapped(marked[-1] if marked else text) or None
