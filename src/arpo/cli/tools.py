"""`arpo tools` shows a recipe's tools as the model sees them, and calls them by hand.

Listing calls nothing and reads no data. Calls go the same way as the calls of a run, with the recipe's cache, limits
and replay.
"""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arpo.chat.body import names_in
from arpo.chat.config import ChatConfig, build_chat
from arpo.core.tree import Call, CallStatus
from arpo.display.terminal import Console
from arpo.environments.config import build_environment
from arpo.environments.episodes import EnvironmentSource, Episodes
from arpo.errors import ConfigError, ToolsStoppedError, nearest
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.rollout.states import ToolStates
from arpo.tasks import Task
from arpo.tools import CallContext, Tool, ToolBase, isolation_notes
from arpo.tools.cache import ReplayMissError
from arpo.tools.config import build_each
from arpo.tools.gateway import ToolGateway, build_unchecked, recorded_offers, tools_not_ready
from arpo.tools.schemas import resolved
from arpo.tools.settings import DEFAULT_LIMITS

SETTING = re.compile(r"[a-z_]+(\.\w+)*=")
MOST_CHARS = 2_000  # of a printed result
MOST_NESTED = 8  # objects in an example: a schema may refer to itself
PATIENCE_S, RETRIES = 10.0, 1  # a person waits, so a provider that is down is reported sooner than in a run
QUESTION = "What is the capital of Peru?"
LATER = "ask once more when it is back; a run waits for tools.limits.patience_s"


def show_tools(recipe: str, words: Sequence[str], call: bool = False) -> bool:
    """`words`: settings to change, then perhaps a tool and its argument (text, or a JSON object), which is called.

    Without a tool all are listed; with `call`, each that changes nothing (`read_only`, `cacheable`) is called once.
    Returns whether every tool could be set up and every call was answered well. Raises ConfigError.
    """
    console = Console(soft_wrap=True)
    settings = [word for number, word in enumerate(words) if all(map(SETTING.match, words[: number + 1]))]
    call_words = words[len(settings) :]
    run = load_recipe(recipe, settings)
    built = list(build_each(run.tools.offered, recorded_offers(run.tools)))
    broken = [each for each in built if isinstance(each, ConfigError)]
    entries = [[] if isinstance(each, ConfigError) else each for each in built]
    tools = {tool.name: tool for each in entries for tool in each}
    if not built and run.environment is None:
        raise ConfigError("this recipe offers no tools", where="tools", value=recipe)
    if broken and (not tools or (call_words and call_words[0] not in tools)):
        raise broken[0]
    tool_gateway, missing = _gateway(run, entries)
    environment = None
    if run.environment is not None:
        environment = build_environment(run.environment, tool_gateway, taken=list(tools))
        tools |= {tool.name: tool for tool in environment.tools}
        console.print(environment.note())
    caller = _Caller(tool_gateway, tools, run, console, environment)
    if call_words:
        made = _asked_call(tools, call_words)
        if call_words[0] in missing:
            raise missing[call_words[0]]
        caller.show_notes([made.name])
        return asyncio.run(caller.call(made))
    caller.show_notes(tools)
    if tools:
        console.print(prompt_text(run, list(tools.values())))
    question = _question(run) if call else ""
    well = not broken
    for tool in tools.values():
        offer = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
        console.print(f"\n{tool.name}\n  {json.dumps(offer, ensure_ascii=False)}")
        if call and not (tool.read_only or tool.cacheable):
            console.print(f"  -> not called, since it may change something: arpo tools {recipe} {tool.name} ARGUMENT")
        elif tool.name in missing:
            console.print(f"  -> not ready: {missing[tool.name]}")
            well = False
        elif call:
            try:
                arguments = example_arguments(tool, question)
                well = asyncio.run(caller.call(Call(name=tool.name, arguments=arguments))) and well
            except ToolsStoppedError as error:
                console.print(f"  -> would stop a run: {error}")
                well = False
    for fault in broken:
        console.print(f"\ncannot be set up: {fault}")
    return well


def _gateway(run: RunConfig, entries: Sequence[Sequence[ToolBase]]) -> tuple[ToolGateway, Mapping[str, ConfigError]]:
    """The gateway to the tools, with the patience of a person, and why tools are not ready."""
    limits = run.tools.limits.over(DEFAULT_LIMITS)
    patience_s, retries = min(limits.patience_s or 0.0, PATIENCE_S), min(limits.retries or 0, RETRIES)
    limits = limits.model_copy(update={"patience_s": patience_s, "retries": retries})
    config = run.tools.model_copy(update={"limits": limits})
    tool_gateway = build_unchecked(config, entries)
    for rate_limit in tool_gateway.rate_limits.values():
        rate_limit.provider.outage.hint = LATER
    return tool_gateway, tools_not_ready(config, entries, tool_gateway)


def prompt_text(run: RunConfig, tools: Sequence[ToolBase]) -> str:
    """The text about the tools in the prompt."""
    if run.chat.format == "template":
        return _by_template(run, tools)
    if run.chat.format == "native":
        return "The endpoint is given the schemas below, and writes them into the prompt by itself."
    from arpo.chat.tags import PAPER_SYSTEM, SYSTEM, check_names, describe, example

    check_names(tools)
    config: ChatConfig = run.chat
    system = {None: SYSTEM, "paper": PAPER_SYSTEM}.get(config.system, config.system) or ""
    return f"The system prompt:\n  {system.format(tools=describe(tools), example=example(tools[0])).strip()}"


def _by_template(run: RunConfig, tools: Sequence[ToolBase]) -> str:
    """The prompt of a question with the model's chat template, if the model is on this machine."""
    from arpo.models.sources import at_hand

    folder = at_hand(run.model.source)
    if folder is None:
        return "The model's chat template writes the schemas below into the prompt. The model itself is not here yet."
    from arpo.assembly.served import declared_ends, read_tokenizer

    tokenizer = read_tokenizer(str(folder), run.model.trust_remote_code)
    chat: Any = build_chat(run.chat, tokenizer, tools, declared_ends(str(folder)))
    task = Task(id="by-hand", messages=({"role": "user", "content": QUESTION},), answers=())
    prompt = "\n".join(f"  {line}" for line in chat.text(chat.render(task, tools)).splitlines())
    return f"{chat.about}\nThe prompt, by the model's chat template:\n{prompt}"


def example_arguments(tool: Tool, question: str) -> dict[str, Any]:
    """Arguments that fit the tool's schema: its examples, else a guess; a text is `question`."""
    properties = tool.schema.get("properties", {})
    needed = tool.schema.get("required", ()) or list(properties)[:1]
    return {name: _example(name, properties.get(name, {}), tool.schema, question) for name in needed}


def _example(name: str, about: Any, whole: Mapping[str, Any], question: str, depth: int = 0) -> Any:
    about = resolved(about, whole)
    for key in ("examples", "enum"):
        if isinstance(about.get(key), list) and about[key]:
            return about[key][0]
    for key in ("default", "const"):
        if key in about:
            return about[key]
    choices: list[Any] = next(
        (about[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(about.get(key), list)), []
    )
    if choices and depth < MOST_NESTED:
        return _example(name, choices[0], whole, question, depth + 1)
    properties = about.get("properties")
    if isinstance(properties, Mapping) and depth < MOST_NESTED:
        return {
            key: _example(key, properties.get(key, {}), whole, question, depth + 1)
            for key in names_in(about.get("required"))
        }
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
        "null": None,
    }
    return kinds.get(kind_of(about), question)


def kind_of(schema: Mapping[str, Any]) -> str:
    """The type of a schema, the first where it has several: `["integer", "null"]` is `integer`."""
    kinds = schema.get("type", "string")
    return str(kinds[0] if isinstance(kinds, list) and kinds else kinds)


def _first_task(run: RunConfig) -> Task | None:
    from arpo.tasks.data import load

    return next(iter(load(run.data.train)), None)


def _question(run: RunConfig) -> str:
    """The first training question, as an example of a query."""
    first = _first_task(run)
    return first.question if first else QUESTION


def _asked_call(tools: Mapping[str, ToolBase], call_words: Sequence[str]) -> Call:
    name, *rest = call_words
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
    kind = kind_of(resolved(properties.get(only[0], {}), tools[name].schema))
    return Call(name=name, arguments={only[0]: text if kind == "string" else _number(name, text)})


def _number(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError("should be a number", where=name, value=text) from error


@dataclass(frozen=True, slots=True)
class _Caller:
    """Makes calls as a run does, and prints them."""

    tool_gateway: ToolGateway
    tools: Mapping[str, ToolBase]
    run: RunConfig
    console: Console
    environment: EnvironmentSource | None = None

    def show_notes(self, names: Iterable[str]) -> None:
        for note in [*isolation_notes(self.tools[name] for name in names), *self.tool_gateway.notes()]:
            self.console.print(note)

    async def call(self, call: Call) -> bool:
        """Make one call, with its own state if the tool has states. Returns whether it was answered well, and from the
        record in a replay."""
        tool, print_ = self.tools[call.name], self.console.print
        task = Task(id="by-hand", messages=({"role": "user", "content": "by hand"},), answers=())
        deadline_s, episodes = self.run.rollout.deadline_s, None
        if self.environment is not None and tool.state_of:
            task = _first_task(self.run) or task
            episodes = Episodes(self.environment, task, seed=self.run.seed, step="by-hand", deadline_s=deadline_s)
            await episodes.begin()
        states = ToolStates([tool], task, deadline_s, episodes)
        print_(f"  {tool.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")
        try:
            state = (await states.at((0,))).get(states.holder(tool.name))
            if episodes is not None and state is not None:
                await episodes.begin_turn(state, (0,))
            context = CallContext(task=task, deadline_s=deadline_s, seed=self.run.seed, state=state)
            outcome = await self.tool_gateway.call(self.tools, call, context)
        except ReplayMissError as error:
            print_(f"  -> replay miss: {error}")
            return False
        finally:
            await states.close()
        how = f"{outcome.seconds * 1e3:.1f} ms"
        if outcome.cached:
            how = "from the cache" if self.run.tools.mode == "live" else "from the record"
        print_(f"  -> {outcome.status.value}, {how}" + (f", {outcome.fault}" if outcome.fault else ""))
        text = outcome.text
        if len(text) > MOST_CHARS:
            text = f"{text[:MOST_CHARS]}… [{len(text):,} characters]"
        print_("\n".join(f"     {line}" for line in text.splitlines() or [""]))
        return outcome.status is CallStatus.OK
