"""What stands between marks: as a regular expression finds it, in linear time also where a model opens mark after
mark."""

import re

from hypothesis import given
from hypothesis import strategies as st

from arpo.final_answer import boxed, enclosed, final_answer

PIECES = [
    "\\boxed{",
    "\\fbox {",
    "{",
    "}",
    "\\",
    "\\{",
    "\\}",
    "\\\\",
    "a",
    "<answer>",
    "</answer>",
    "<t>",
    "</t>",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=16).map("".join))
def test_marks_are_found_as_a_regular_expression_finds_them(text: str) -> None:
    slow = re.compile("<t>(.*?)</t>", re.DOTALL)
    assert enclosed(text, "t") == (slow.findall(text), slow.sub("", text))


@given(st.lists(st.sampled_from(PIECES), max_size=16).map("".join))
def test_the_last_box_that_closes_is_found(text: str) -> None:
    def inside(start: int) -> str | None:
        depth, at = 1, start
        while at < len(text):
            depth += 0 if text[at] == "\\" else {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
            at += 2 if text[at] == "\\" else 1
        return None

    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    closed = [found for start in starts if (found := inside(start)) is not None]
    assert boxed(text) == (closed[-1] if closed else None)


def test_a_model_that_opens_and_never_closes_costs_no_time() -> None:
    """By trying every mark to the end of the text this would take minutes, in which the event loop serves nobody."""
    assert boxed("\\boxed{" * 100_000) is None
    assert boxed("\\boxed{1}" + "\\boxed{" * 100_000) == "1"
    assert final_answer("<answer>" * 100_000) == "<answer>" * 100_000
    assert enclosed("<tool_call>" * 100_000, "tool_call") == ([], "<tool_call>" * 100_000)
