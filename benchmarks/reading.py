"""How long it takes to read a turn of 8,000 tokens: its text, its calls, and whether it holds a call of another family.

    arpo bench reading                  20 repetitions
    arpo bench reading -- --quick       3

Every syntax reads a turn with one long argument, one with many calls, one without any, and one that opens calls and
closes none. The vocabulary is the quickstart model's. One thread, seconds of the processor, the least of all
repetitions: what else runs on the machine makes them longer, never shorter.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from _figures import at_most, finish

from arpo.assembly.served import read_tokenizer
from arpo.chat.syntaxes import Syntax
from arpo.chat.syntaxes.known import SYNTAXES, foreign_opening
from arpo.chat.token_text import TokenText
from arpo.core.tree import Call
from arpo.models.loading import ModelConfig
from arpo.tools.function import tool

TOKENS = 8_000
MOST_MS = 5.0
LINE = 'total = total + price["tea"] * 3  # what 3 kilos of tea cost, in all\n'
PROSE = "I look up the price of tea first, and then what three kilos of it cost. "


@tool
def python(code: str) -> str:
    """Runs code."""
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="3 repetitions")
    options = parser.parse_args(arguments)
    repeat = 3 if options.quick else options.repeat
    text = TokenText(read_tokenizer(str(ModelConfig.model_fields["source"].default)))
    by_syntax = {syntax.name: measure(text, syntax, repeat) for syntax in SYNTAXES}
    slowest = max(ms for shapes in by_syntax.values() for ms in shapes.values())
    figures = {"tokens": TOKENS, "ms_a_turn": by_syntax, "slowest_ms": slowest}
    return finish("reading", figures, [at_most("the slowest turn of 8,000 tokens, ms", MOST_MS, slowest)])


def measure(text: TokenText, syntax: Syntax, repeat: int) -> dict[str, float]:
    """Milliseconds by the shape of the turn."""
    return {
        shape: least_ms(lambda tokens=tokens: read(text, syntax, tokens), repeat)  # type: ignore[misc]
        for shape, tokens in turns(text, syntax).items()
    }


def read(text: TokenText, syntax: Syntax, tokens: Sequence[int]) -> None:
    written = text.decode(tokens)
    reading = syntax.read(written, {python.name: python})
    foreign_opening(reading.rest or "", syntax)


def turns(text: TokenText, syntax: Syntax) -> dict[str, list[int]]:
    """Turns of TOKENS tokens (or a little fewer), by their shape."""
    most = 1 if syntax.name == "harmony" else 10_000

    def long(lines: int) -> str:
        return PROSE + syntax.write([Call(name="python", arguments={"code": LINE * lines})])

    def many(calls: int) -> str:
        return PROSE + syntax.write([Call(name="python", arguments={"code": LINE})] * min(calls, most))

    def unclosed(calls: int) -> str:
        return syntax.write([Call(name="python", arguments={"code": LINE})])[:40] * calls

    shapes: dict[str, Callable[[int], str]] = {
        "one_call": long,
        "many_calls": many,
        "no_call": lambda lines: PROSE * lines,
        "never_closed": unclosed,
    }
    return {shape: filled(text, make) for shape, make in shapes.items()}


def filled(text: TokenText, make: Callable[[int], str]) -> list[int]:
    """The tokens of `make(n)` for the largest n with at most TOKENS of them."""
    one, two = len(text.trusted(make(10))), len(text.trusted(make(20)))
    number = 10 if two == one else max(1, 10 + int((TOKENS - one) / ((two - one) / 10)))
    return text.trusted(make(number))[:TOKENS]


def least_ms(work: Callable[[], Any], repeat: int) -> float:
    least = float("inf")
    for _ in range(repeat):
        begun = time.process_time()
        work()
        least = min(least, time.process_time() - begun)
    return round(1e3 * least, 3)


if __name__ == "__main__":
    raise SystemExit(main())
