"""Calls of the tool `page` against servers on this machine."""

from typing import Any

import pytest

from arpo.errors import ProviderError, ToolError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.page import PageTool

HERE = ["127.0.0.0/8"]
FILLER = "The weather of the valley is mild and the harvest was good again this year, people say. "
HTML = f"""<!doctype html><html><head><title>The river Rimac</title></head><body>\
<nav>Home About Login</nav><article><h1>Rimac</h1>
{"".join(f"<p>{FILLER * 3} Number {number}.</p>" for number in range(12))}
<p>The river Rimac springs from the Ticlio in Huarochiri at 5,508 metres and reaches the sea near Callao after \
160 kilometres.</p>
{"".join(f"<p>{FILLER * 3} Remark {number}.</p>" for number in range(12))}\
</article><footer>Imprint</footer></body></html>"""


def context(question: str = "Where does the Rimac spring?") -> CallContext:
    return CallContext(
        task=Task(id="t", messages=({"role": "user", "content": question},), answers=()), deadline_s=10, seed=0
    )


def page(**options: Any) -> PageTool:
    return PageTool(**{"allow_private": HERE, "robots": False, **options})


async def told(tool: PageTool, url: str, **arguments: str) -> str:
    return (await tool({"url": url, **arguments}, context())).text


async def refused(url: str, **options: Any) -> str:
    with pytest.raises(ToolError) as caught:
        await page(**options)({"url": url}, context())
    assert not isinstance(caught.value, ProviderError), caught.value
    return str(caught.value)
