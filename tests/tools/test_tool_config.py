"""Building tools from recipes: what cannot be set up stops the run, by name."""

import asyncio
import sys
import types

import pytest

from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext, StatefulTool, ToolResult, with_defaults
from arpo.tools.config import ToolConfig, build_tools
from arpo.tools.function import tool


class Echo:
    """A tool as somebody may write it by hand."""

    def __init__(self, times: int = 1) -> None:
        self.name, self.description = "echo", "Repeats."
        self.schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        self.times = times

    async def __call__(self, arguments, context: CallContext) -> ToolResult:
        return ToolResult(text=arguments["text"] * self.times)


@tool
def shout(text: str) -> str:
    """Shouts."""
    return text.upper()


def plain(text: str) -> str:
    """Says."""
    return text


def make(times: int) -> Echo:
    return Echo(times)


CONTEXT = CallContext(task=Task(id="t", messages=(), answers=()), deadline_s=5.0, seed=0)


def test_a_tool_of_four_members_gets_defaults_for_the_rest_and_keeps_what_it_has() -> None:
    (tool,) = build_tools([Echo()])
    assert (tool.deadline_s, tool.cacheable, tool.version, tool.provider, tool.isolation) == (None, False, "", "", "")
    assert tool.normalise({"text": "a"}) == {"text": "a"} and not isinstance(tool, StatefulTool)
    echo = Echo()
    echo.cacheable, echo.normalise = True, lambda arguments: {"text": arguments["text"].strip()}
    (tool,) = build_tools([echo])
    assert tool.cacheable and tool.normalise({"text": " a "}) == {"text": "a"}
    assert with_defaults(tool) is tool


def test_a_tool_with_half_of_a_state_is_named() -> None:
    class Half(Echo):
        async def open(self, task: Task) -> None: ...

    with pytest.raises(ConfigError, match="has `open`, and no `fork` and no `close`"):
        build_tools([Half()])


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("plugin_of_a_user")
    made.Echo, made.shout, made.plain, made.make, made.number = Echo, shout, plain, make, 3
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made.__name__


def test_objects_functions_classes_and_factories(module):
    tools = build_tools(
        [
            plain,
            shout,
            Echo(),
            ToolConfig(use=f"{module}:Echo", name="twice", options={"times": 2}),
            ToolConfig(use=f"{module}:make", name="thrice", options={"times": 3}),
            ToolConfig(use=f"{module}:shout", name="louder", description="Shouts more.", deadline_s=2),
        ]
    )
    assert [tool.name for tool in tools] == ["plain", "shout", "echo", "twice", "thrice", "louder"]
    said = [asyncio.run(tool({"text": "a"}, CONTEXT)).text for tool in tools]
    assert said == ["a", "A", "a", "aa", "aaa", "A"]
    assert tools[5].deadline_s == 2 and tools[5].description == "Shouts more."
    assert shout.name == "shout" and shout.deadline_s is None


@pytest.mark.parametrize(
    "config, word",
    [
        ({"use": "serch"}, r"tools\.offered\.0\.use: .*'search'"),
        ({"use": "no_such_module_here:x"}, r"tools\.offered\.0\.use: .*no_such_module_here"),
        ({"use": "{module}:nope"}, "nope"),
        ({"use": "{module}:number"}, "neither a tool nor a function"),
        ({"use": "{module}:Echo", "options": {"tims": 2}}, r"tools\.offered\.0\.options: .*'times'"),
        ({"use": "{module}:shout", "options": {"x": 2}}, "takes no options"),
        (
            {"use": "search", "options": {"documents": "/no/such/place"}},
            r"tools\.offered\.0\.options\.documents: .*/no/such/place",
        ),
        ({"use": "search", "options": {"k": 0}}, r"tools\.offered\.0\.options\.k: "),
    ],
)
def test_defect_8_a_tool_that_fails_to_load_stops_the_run(module, config, word):
    """The released code skips it in silence and trains with no tools."""
    config = {**config, "use": config["use"].format(module=module)}
    with pytest.raises(ConfigError, match=word):
        build_tools([ToolConfig(**config)])


def test_defect_8_a_tool_that_raises_while_it_is_set_up_is_named(module):
    class Breaks(Echo):
        def __init__(self) -> None:
            raise RuntimeError("no key")

    sys.modules[module].Breaks = Breaks
    with pytest.raises(ConfigError, match=r"tools\.offered\.0: .*no key.*Breaks"):
        build_tools([ToolConfig(use=f"{module}:Breaks")])


def test_one_entry_may_give_several_tools(module):
    sys.modules[module].everything = [shout, plain]
    tools = build_tools([ToolConfig(use=f"{module}:everything", deadline_s=2), ToolConfig(use=f"{module}:Echo")])
    assert (
        [tool.name for tool in tools] == ["shout", "plain", "echo"]
        and tools[0].deadline_s == 2
        and shout.deadline_s is None
    )
    with pytest.raises(ConfigError, match="renames some of them"):
        build_tools([ToolConfig(use=f"{module}:everything", name="both")])


def test_names_are_unique():
    with pytest.raises(ConfigError, match="one name"):
        build_tools([shout, shout])


@pytest.mark.parametrize(
    ("use", "option", "meant"), [("python", "bakend", "backend"), ("search", "documants", "documents")]
)
def test_a_misspelt_option_of_a_built_in_tool_is_named(use: str, option: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^tools\.offered\.0\.options: no such option \(got '{option}'\).*{meant}"):
        build_tools([ToolConfig(use=use, options={option: "x"})])
