"""`arpo tools` shows a recipe's tools as the model sees them, and calls them by hand.

Calls go the same way as the calls of a run, with the recipe's cache, limits and replay.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from arpo.chat.body import resolved
from arpo.chat.config import ChatConfig, build_chat
from arpo.core.tree import Call, CallStatus, ToolCallResult
from arpo.errors import ConfigError, ToolsStoppedError, nearest
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.tasks import Task
from arpo.threads import settled
from arpo.tools import CallContext, StatefulTool, Tool, ToolBase, isolation_notes
from arpo.tools.cache import ReplayMissError
from arpo.tools.config import build_each
from arpo.tools.gateway import ToolGateway, build_unchecked, recorded_offers, tools_not_ready

SETTING = re.compile(r"[a-z_]+(\.\w+)*=")
MOST_CHARS = 2_000  # of a printed result
PATIENCE_S, RETRIES = 10.0, 1  # a person waits, so a provider that is down is reported sooner than in a run
LATER = "ask once more when it is back; a run waits for tools.limits.patience_s"


def show_tools(recipe: str, words: Sequence[str]) -> bool:
    """`words`: settings to change, then perhaps a tool and its argument (text, or a JSON object). Without a tool all
    are listed, and each is called once. Returns whether every call was answered well. Raises ConfigError."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    settings = [word for number, word in enumerate(words) if all(map(SETTING.match, words[: number + 1]))]
    asked = words[len(settings) :]
    run = load_recipe(recipe, settings)
    built = list(build_each(run.tools.offered, recorded_offers(run.tools)))
    broken = [each for each in built if isinstance(each, ConfigError)]
    entries = [[] if isinstance(each, ConfigError) else each for each in built]
    tools = {tool.name: tool for each in entries for tool in each}
    if not built:
        raise ConfigError("this recipe offers no tools", where="tools", value=recipe)
    if broken and (not tools or (asked and asked[0] not in tools)):
        raise broken[0]
    limits = run.tools.limits
    limits = limits.model_copy(
        update={"patience_s": min(limits.patience_s, PATIENCE_S), "retries": min(limits.retries, RETRIES)}
    )
    config = run.tools.model_copy(update={"limits": limits})
    tool_gateway = build_unchecked(config, entries)
    for rate_limit in tool_gateway.rate_limits.values():
        rate_limit.provider.outage.hint = LATER
    missing = tools_not_ready(config, entries, tool_gateway)
    if asked:
        calls = [_asked_call(tools, asked)]
        if asked[0] in missing:
            raise missing[asked[0]]
    else:
        calls = [Call(name=tool.name, arguments=example_arguments(tool, _question(run))) for tool in tools.values()]
    for note in [*isolation_notes(tools[call.name] for call in calls), *tool_gateway.notes()]:
        console.print(note)
    if not asked:
        console.print(prompt_text(run, list(tools.values())))
    outcomes = asyncio.run(_call_all(tool_gateway, tools, calls, run, console, listed=not asked, missing=missing))
    answered = all(outcome is not None and outcome.status is CallStatus.OK for outcome in outcomes)
    if asked:
        return answered
    for error in broken:
        console.print(f"\ncannot be set up: {error}")
    return answered and not broken


def prompt_text(run: RunConfig, tools: Sequence[ToolBase]) -> str:
    """The text about the tools in the prompt."""
    if run.chat.format == "template":
        return _by_template(run, tools)
    if run.chat.format == "native":
        return "The endpoint is given the schemas below, and writes them into the prompt by itself."
    from arpo.chat.tags import PAPER_SYSTEM, SYSTEM, describe, example

    config: ChatConfig = run.chat
    system = {None: SYSTEM, "paper": PAPER_SYSTEM}.get(config.system, config.system) or ""
    return f"The system prompt:\n  {system.format(tools=describe(tools), example=example(tools[0])).strip()}"


def _by_template(run: RunConfig, tools: Sequence[ToolBase]) -> str:
    """The prompt of the recipe's first question with the model's chat template, if the model is on this machine."""
    from arpo.models.sources import at_hand

    folder = at_hand(run.model.source)
    if folder is None:
        return "The model's chat template writes the schemas below into the prompt. The model itself is not here yet."
    from arpo.assembly.served import read_tokenizer

    tokenizer = read_tokenizer(str(folder))
    task = Task(id="by-hand", messages=({"role": "user", "content": _question(run)},), answers=())
    prompt = tokenizer.decode(build_chat(run.chat, tokenizer, tools).render(task, tools))
    return "The prompt, by the model's chat template:\n" + "\n".join(f"  {line}" for line in str(prompt).splitlines())


def example_arguments(tool: Tool, question: str) -> dict[str, Any]:
    """Arguments that fit the tool's schema: its examples, else a guess; a text is `question`."""
    properties = tool.schema.get("properties", {})
    needed = tool.schema.get("required", ()) or list(properties)[:1]
    return {name: _example(name, properties.get(name, {}), tool.schema, question) for name in needed}


def _example(name: str, about: Mapping[str, Any], whole: Mapping[str, Any], question: str) -> Any:
    about = resolved(about, whole)
    if "properties" in about:
        return {key: _example(key, about["properties"][key], whole, question) for key in about.get("required", ())}
    for key in ("examples", "enum"):
        if about.get(key):
            return about[key][0]
    if "default" in about:
        return about["default"]
    if name in ("code", "program", "expression"):
        return "6 * 7"
    if name in ("url", "link"):
        return "https://example.com"
    kinds = {
        "integer": about.get("minimum", 1),
        "number": about.get("minimum", 1.0),
        "boolean": False,
        "array": [],
        "object": {},
    }
    return kinds.get(about.get("type", "string"), question)


def _question(run: RunConfig) -> str:
    """The first training question, as an example of a query."""
    from arpo.tasks.data import load

    first = next(iter(load(run.data.train)), None)
    return first.question if first else "What is the capital of Peru?"


def _asked_call(tools: Mapping[str, ToolBase], asked: Sequence[str]) -> Call:
    name, *rest = asked
    if name not in tools:
        raise ConfigError("this recipe has no such tool", where="tools", value=name, hint=nearest(name, tools))
    text = " ".join(rest)
    properties, required = tools[name].schema.get("properties", {}), tools[name].schema.get("required", ())
    if text.lstrip().startswith("{"):
        try:
            return Call(name=name, arguments=json.loads(text))
        except ValueError as error:
            raise ConfigError(f"is not JSON: {error}", where=name, value=text[:80]) from error
    only = [*required, *(key for key in properties if key not in required)][:1]
    if not text or not only or len(required) > 1:
        example = json.dumps(example_arguments(tools[name], "text"))
        raise ConfigError(
            "needs its argument", where=name, value=text or None, hint=f"A text, or a JSON object: '{example}'"
        )
    kind = resolved(properties.get(only[0], {}), tools[name].schema).get("type", "string")
    return Call(name=name, arguments={only[0]: text if kind == "string" else _number(name, text)})


def _number(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError("should be a number", where=name, value=text) from error


async def _call_all(
    tool_gateway: ToolGateway,
    tools: Mapping[str, ToolBase],
    calls: Sequence[Call],
    run: RunConfig,
    console: Console,
    *,
    listed: bool,
    missing: Mapping[str, ConfigError],
) -> list[ToolCallResult | None]:
    outcomes: list[ToolCallResult | None] = []
    for call in calls:
        tool = tools[call.name]
        if listed:
            schema = json.dumps(
                {"name": tool.name, "description": tool.description, "parameters": tool.schema}, ensure_ascii=False
            )
            console.print(f"\n{tool.name}\n  {schema}")
        if call.name in missing:
            console.print(f"  -> not called: {missing[call.name]}")
            outcomes.append(None)
            continue
        console.print(f"  {tool.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")
        try:
            outcomes.append(await _call(tool_gateway, tools, call, run, console))
        except ToolsStoppedError as error:
            if not listed:
                raise
            console.print(f"  -> would stop a run: {error}")
            outcomes.append(None)
    return outcomes


async def _call(
    tool_gateway: ToolGateway, tools: Mapping[str, ToolBase], call: Call, run: RunConfig, console: Console
) -> ToolCallResult | None:
    """Make one call, with its own state if the tool has states. None if the record does not hold the call."""
    task = Task(id="by-hand", messages=({"role": "user", "content": "by hand"},), answers=())
    tool = tools[call.name]
    state = await settled(tool.open, task) if isinstance(tool, StatefulTool) else None
    try:
        context = CallContext(task=task, deadline_s=run.rollout.tool_deadline_s, seed=run.seed, state=state)
        outcome = await tool_gateway.call(tools, call, context)
    except ReplayMissError as error:
        console.print(f"  -> replay miss: {error}")
        return None
    finally:
        if isinstance(tool, StatefulTool):
            await settled(tool.close, state)
    how = (
        "from the record" if outcome.cached and run.tools.mode != "live" else "from the cache" if outcome.cached else ""
    )
    took = how or f"{outcome.seconds * 1e3:.1f} ms"
    console.print(f"  -> {outcome.status.value}, {took}" + (f", {outcome.fault}" if outcome.fault else ""))
    text = (
        outcome.text
        if len(outcome.text) <= MOST_CHARS
        else f"{outcome.text[:MOST_CHARS]}… [{len(outcome.text):,} characters]"
    )
    console.print("\n".join(f"     {line}" for line in text.splitlines() or [""]))
    return outcome
