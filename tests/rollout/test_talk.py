"""What a talk shows of a turn while it is written."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from arpo.engines import SamplingParams
from arpo.engines.scripted import ScriptedEngine
from arpo.rollout.agent import HeardEngine


def test_what_the_last_token_of_a_tag_brings_along_is_not_shown(tokenizer: Any) -> None:
    """One token may be `><`: it closes the tag, so the turn ends, and its second character is nobody's."""
    said = "<think>Lima it is.</think><answer>Lima</answer><"
    chat = SimpleNamespace(stop=("</answer>", "</search>"), text=tokenizer.decode)
    shown: list[str] = []
    engine = HeardEngine(
        ScriptedEngine(lambda prompt, params: said, tokenizer), cast(Any, chat), lambda text, _: shown.append(text)
    )

    async def turn() -> None:
        async for _ in engine.sample([1, 2], SamplingParams(max_tokens=64)):
            pass

    asyncio.run(turn())
    assert "".join(shown) == said[:-1]
