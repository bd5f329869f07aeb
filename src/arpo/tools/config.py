"""The tools of a recipe: their configuration, and how tools are built from it."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, StrictBool, WrapValidator, model_validator

from arpo.config import Config
from arpo.errors import ArpoError, ConfigError, install, nearest
from arpo.import_path import import_from_path
from arpo.options import at_option, check_options, refuse_secrets
from arpo.tools.settings import CacheConfig, LimitsConfig, Mode

if TYPE_CHECKING:
    from arpo.tools import Tool, ToolBase
    from arpo.tools.recorded import Offers


class ToolConfig(Config):
    """One tool of a recipe."""

    use: str
    """`search`, `python`, `web`, `page`, `mcp`, or an import path such as `my_pkg.tools:lookup` (a function, a class or
    a tool)."""
    name: str | dict[str, str] = ""
    """What the model calls it. Empty: the tool's own name. Where the entry gives several tools (a server's), new names
    by their own: `{read_file: open}`."""
    description: str = ""
    """What the model is told it does. Empty: the tool's own words."""
    deadline_s: float | None = Field(default=None, gt=0)
    """Seconds one call may take. None: the tool's own deadline, or else the run's."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the tool when it is built: `{documents: atlas, k: 3}` for `search`, `{seconds: 5}` for `python`."""
    cache: StrictBool | Annotated[float, Field(gt=0)] | None = None
    """Whether its results are kept, or for how many days; null: where the tool says that they may be kept
    (`cacheable`)."""
    limits: LimitsConfig = LimitsConfig()
    """Where its limits differ from those of all tools."""

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        refuse_secrets(self.options)
        return self


def _one(given: Any, check: Callable[[Any], Any]) -> Any:
    """A word stands for a group, `search` for `{use: search}`; in Python an entry may be a tool or a function."""
    return given if callable(given) else check({"use": given} if isinstance(given, str) else given)


class ToolsConfig(Config):
    """The tools that the agent may call, and the cache and limits of calls. A list is short for `{offered: [...]}`."""

    offered: tuple[Annotated[ToolConfig, WrapValidator(_one)], ...] = ()
    """The tools (from Python also tool objects and functions)."""
    mode: Mode = "live"
    """`record`: keep every result of the tools that may be cached, without end, and take what is kept; `replay`: those
    tools answer from the record alone, and a call that is not in it ends its branch (`replay_miss`)."""
    cache: CacheConfig = CacheConfig()
    """Where results are kept."""
    limits: LimitsConfig = LimitsConfig()
    """What calls may take, and when too many fail."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        return {"offered": given} if isinstance(given, list | tuple) else given


BUILT_IN = {
    "search": "arpo.tools.search:SearchTool",
    "python": "arpo.tools.python:PythonTool",
    "web": "arpo.tools.web:WebSearchTool",
    "page": "arpo.tools.page:PageTool",
    "mcp": "arpo.tools.mcp:mcp_tools",
}
EXTRAS = {"web": "web", "page": "web", "mcp": "mcp"}  # the extra that brings a tool's packages


def build_tools(configs: Sequence["ToolConfig | Tool | Callable[..., Any]"]) -> list["ToolBase"]:
    """The tools of a run, from configs, tool objects and plain functions.

    Raises ConfigError naming the tool where one cannot be imported or set up, or two have one name: a run never starts
    with fewer tools than it asked for.
    """
    return [tool for tools in build_entries(configs) for tool in tools]


def build_entries(
    configs: Sequence["ToolConfig | Tool | Callable[..., Any]"], offers: "Offers | None" = None
) -> list[list["ToolBase"]]:
    """The tools of each entry: an entry may name a server that offers several. With `offers`, of a record to be
    replayed, no server is started for tools whose results are recorded."""
    built: list[list[ToolBase]] = []
    for each in build_each(configs, offers):
        if isinstance(each, ConfigError):
            raise each
        built.append(each)
    return built


def build_each(
    configs: Sequence["ToolConfig | Tool | Callable[..., Any]"], offers: "Offers | None" = None
) -> "Iterator[list[ToolBase] | ConfigError]":
    """The tools of each entry, or the error of an entry that cannot be set up."""
    names: list[str] = []
    for number, config in enumerate(configs):
        try:
            tools = _build(config, f"tools.offered.{number}", offers)
        except ConfigError as error:
            yield error
            continue
        names += [tool.name for tool in tools]
        yield tools
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("two tools have one name", where="tools", value=name, hint="set `name` on one of them")


def _build(config: Any, where: str, offers: "Offers | None" = None) -> "list[ToolBase]":
    """The tool of one entry; several where it names a server, or a factory that returns several."""
    if not isinstance(config, ToolConfig):
        return [_renamed(_as_tool(each, where), {}, True, where) for each in _methods(config, {}) or [config]]
    try:
        if offers is not None and config.use == "mcp" and _is_kept(config):
            from arpo.tools.recorded import recorded_tools

            target, made = None, recorded_tools(config.options, offers)
        else:
            target = _target(config.use, f"{where}.use")
            made = _made(target, config, where)
    except ArpoError:
        raise
    except Exception as error:
        wrong = f"the tool cannot be set up: {type(error).__name__}: {error}"
        raise ConfigError(wrong, where=where, value=config.use) from error
    several = isinstance(made, list | tuple)
    tools = [_as_tool(each, where) for each in made] if several else [_as_tool(made, where)]
    own_names = [tool.name for tool in tools]
    if len(tools) > 1 and ((isinstance(config.name, str) and config.name) or config.description):
        wrong = f"this gives {len(tools)} tools ({', '.join(own_names)}), each with its own name and description"
        raise ConfigError(wrong, where=where, hint="`name: {OLD: NEW}` renames some of them")
    names = config.name if isinstance(config.name, dict) else {own_names[0]: config.name} if own_names else {}
    for name in names:
        if name not in own_names:
            hint = nearest(name, own_names)
            raise ConfigError("there is no such tool to rename", where=f"{where}.name", value=name, hint=hint)
    renamed = []
    for tool in tools:
        changes = {"name": names.get(tool.name), "description": config.description, "deadline_s": config.deadline_s}
        changes = {key: value for key, value in changes.items() if value}
        renamed.append(_renamed(tool, changes, tool is target or made is target, where))
    return renamed


def _is_kept(config: ToolConfig) -> bool:
    return bool(config.options.get("keep") if config.cache is None else config.cache)


def _target(use: str, where: str) -> Any:
    if use in BUILT_IN:
        if use in EXTRAS:
            _needs_extra(use, where)
        return import_from_path(BUILT_IN[use], where)
    if ":" not in use:
        raise ConfigError(
            "no such tool", where=where, value=use, hint=f"{nearest(use, BUILT_IN)}, or an import path module:name"
        )
    return import_from_path(use, where)


def _needs_extra(use: str, where: str) -> None:
    module = BUILT_IN[use].partition(":")[0]
    try:
        import_module(module)
    except ImportError as error:
        hint = install(EXTRAS[use])
        raise ConfigError(
            f"{use} needs packages that are not installed ({error})", where=where, value=use, hint=hint
        ) from error


def _made(target: Any, config: ToolConfig, where: str) -> Any:
    """The tool or function that `target` is or makes, or a list of them."""
    ours = config.use in BUILT_IN
    if inspect.isclass(target) or ours:
        check_options(target, config.options, where)
    if inspect.isclass(target) or ours or (config.options and callable(target) and not _is_tool(target)):
        try:
            return _methods(target, config.options) or target(**config.options)
        except ConfigError as error:  # it names its own argument
            raise at_option(error, config.options, where, config.use) from error
    if config.options:
        raise ConfigError(
            "this tool is already built and takes no options", where=f"{where}.options", value=config.options
        )
    return target


def _methods(target: Any, options: dict[str, Any]) -> "list[ToolBase]":
    """The tools of a class whose methods are tools; [] for anything else."""
    if not inspect.isclass(target):
        return []
    from arpo.tools.function import has_tool_methods, tools_of

    return list(tools_of(target, options)) if has_tool_methods(target) else []


def _is_tool(candidate: Any) -> bool:
    from arpo.tools import Tool

    return not inspect.isclass(candidate) and isinstance(candidate, Tool)


def _as_tool(candidate: Any, where: str) -> "ToolBase":
    from arpo.tools import with_defaults
    from arpo.tools.function import FunctionTool

    if isinstance(candidate, FunctionTool) and candidate.is_method:
        hint = "Name its class: all its methods that are tools are offered, over one object"
        raise ConfigError("this tool is a method, and of no object", where=where, value=candidate.name, hint=hint)
    if _is_tool(candidate):
        if hasattr(candidate, "open") and (
            missing := [name for name in ("fork", "close") if not hasattr(candidate, name)]
        ):
            wrong = (
                "a tool with a state has `open`, `fork` and `close`: this one has `open`, and no "
                f"`{'` and no `'.join(missing)}`"
            )
            raise ConfigError(wrong, where=where, value=candidate.name)
        return with_defaults(candidate)
    if inspect.isroutine(candidate):
        return FunctionTool(candidate)
    raise ConfigError(
        "neither a tool nor a function", where=where, value=candidate, hint="see arpo.tools.Tool, or use @arpo.tool"
    )


def _renamed(tool: "ToolBase", changes: dict[str, Any], shared: bool, where: str) -> "ToolBase":
    """`tool` with other attributes and its schema checked; a copy where the object is shared (an imported one may
    serve another recipe too)."""
    from arpo.tools.schemas import checked_schema

    changed = copy.copy(tool) if changes and shared else tool
    try:
        for key, value in changes.items():
            setattr(changed, key, value)
        schema = checked_schema(changed, where)
        if schema is not changed.schema:
            changed = copy.copy(changed)
            changed.schema = schema
    except AttributeError as error:
        kinds = " or ".join(changes) or "schema"
        raise ConfigError(f"this tool cannot be given another {kinds}: {error}", where=where) from error
    return changed
