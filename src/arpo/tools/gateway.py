"""All calls of a run on their way to its tools: from the cache or made, limited, paid, counted, and stopped where they must be.

    call ─ admitted? ─ cached, recorded or under way? ─ provider lets it through? ─ budget? ─ attempt (arpo.tools.call) ─ account

Knows which tools may be cached, who their providers are, and what a run may spend. Refuses to know trees and tokens.
"""

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arpo.core.tree import Call, ToolCallResult
from arpo.errors import ConfigError, ProviderError, ToolsStoppedError
from arpo.files import cache_folder, expanded
from arpo.http.limits import Provider, Tell
from arpo.import_path import import_path
from arpo.tools import CallContext, Tool
from arpo.tools.cache import DAY_S, Cache, CachePolicy
from arpo.tools.cache_key import digest
from arpo.tools.call import admitted, attempt, unavailable
from arpo.tools.config import ToolConfig, ToolsConfig
from arpo.tools.settings import LimitsConfig, ToolLimitsConfig
from arpo.tools.store import Store
from arpo.tools.usage import UNKNOWN, ToolUsage, UsageLog, read_usage


@dataclass(slots=True, kw_only=True)
class RateLimit:
    """What stands around one tool. `tool` None: tools that tasks bring under this name."""

    provider: Provider
    tool: Tool | None = None
    kept: CachePolicy | None = None  # None: its results are not
    limits: ToolLimitsConfig = field(default_factory=ToolLimitsConfig)
    error_rate: float = 1.0
    failed: deque[bool] = field(default_factory=deque)  # the last calls: did they?
    account: ToolUsage = field(default_factory=ToolUsage)


class ToolGateway:
    """Where the calls of a run pass. Without arguments: nothing is cached or limited, all is counted.

    `tell` hears of pauses and of what can no longer be kept; who shows a run sets it.
    """

    def __init__(self, limits: LimitsConfig | None = None) -> None:
        self.lanes: dict[str, RateLimit] = {}
        self.cache: Cache | None = None
        self.limits = limits or LimitsConfig()
        self.tell: Tell = _on_stderr
        self._book: UsageLog | None = None  # None: nobody keeps the accounts

    @property
    def usage(self) -> dict[str, ToolUsage]:
        """By tool, of all that were called."""
        return {name: lane.account for name, lane in self.lanes.items() if lane.account.asked}

    async def call(self, tools: Mapping[str, Tool], call: Call, context: CallContext) -> ToolCallResult:
        """What `call` comes to: as `arpo.tools.call.run_call`, with all that stands around it.

        Raises ReplayMissError for a call that the record does not hold, ToolsStoppedError where the run cannot go on.
        """
        tool = admitted(tools, call)
        if isinstance(tool, ToolCallResult):
            self._lane(call.name if call.name in tools else UNKNOWN).account.add(tool)
            return tool
        lane = self._lane(tool.name)
        keyed = None
        if self.cache is not None and lane.kept is not None and lane.tool is tool:
            keyed = _keyed(tool, call.arguments, context)
        if self.cache is not None and lane.kept is not None and keyed is not None:
            outcome = await self.cache.outcome(lane.kept, keyed, lambda: self._make(lane, tool, call, context))
        else:
            outcome, _ = await self._make(lane, tool, call, context)
        lane.account.add(outcome)
        self._note(money=False)
        return outcome

    async def _make(self, lane: RateLimit, tool: Tool, call: Call, context: CallContext) -> tuple[ToolCallResult, bool]:
        async def once() -> tuple[ToolCallResult, bool]:
            self._pay(tool.name, lane)
            return await attempt(tool, call.arguments, context)

        try:
            (outcome, empty), attempts = await lane.provider.call(once)
        except ProviderError as error:
            return unavailable(tool, error), False
        lane.account.made(outcome)
        self._note(money=outcome.cost > 0)
        self._watch(lane, outcome)
        return (outcome if attempts == 1 else replace(outcome, attempts=attempts)), empty

    def _lane(self, name: str) -> RateLimit:
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = RateLimit(provider=self._provider(name), error_rate=_rate(None, self.limits.error_rate))
            lane.failed = deque(maxlen=self.limits.error_window)
        return lane

    def _provider(self, name: str, limits: ToolLimitsConfig | None = None) -> Provider:
        own = limits or ToolLimitsConfig()
        return Provider(
            name,
            rate=own.rate or self.limits.rate or 0.0,
            concurrency=own.concurrency or self.limits.concurrency or 0,
            retries=self.limits.retries if own.retries is None else own.retries,
            patience_s=self.limits.patience_s,
            tell=self._tell,
        )

    def _shared(self, providers: dict[str, Provider], tool: Tool, limits: ToolLimitsConfig) -> Provider:
        """The one provider behind `tool`, as strict as the strictest of its tools."""
        name = getattr(tool, "provider", "") or tool.name
        made = self._provider(name, limits)
        provider = providers.setdefault(name, made)
        provider.rate = _stricter(provider.rate, made.rate)
        for most in (made.concurrency, getattr(tool, "concurrency", 0) or 0):
            provider.concurrency = int(_stricter(provider.concurrency, most))
        return provider

    def _tell(self, text: str, level: str) -> None:
        self.tell(text, level)

    # --- what a run may spend

    def _pay(self, name: str, lane: RateLimit) -> None:
        """Before every attempt. Raises ToolsStoppedError where the budget is used up."""
        for limits, usage, what, key in (
            (lane.limits, (lane.account,), f"of {name}", f"limits of {name} (tools.offered)"),
            (self.limits, (one.account for one in self.lanes.values()), "of tools", "tools.limits"),
        ):
            if limits.calls is None and limits.money is None:
                continue
            paid = [(account.attempts, account.cost) for account in usage]
            calls, money = sum(n for n, _ in paid), sum(cost for _, cost in paid)
            spent = limits.calls is not None and calls >= limits.calls
            if spent or (limits.money is not None and money >= limits.money):
                used = f"{calls:,} calls" if spent else f"{money:.4g} in money for {calls:,} calls"
                setting = "calls" if spent else "money"
                hint = f"To go on, raise `{setting}` in the {key} and resume the run"
                raise ToolsStoppedError(f"the run's budget for calls {what} is used up: {used}. {hint}")
        lane.account.attempts += 1

    def _watch(self, lane: RateLimit, outcome: ToolCallResult) -> None:
        """Raises ToolsStoppedError where too many of the tool's last calls failed."""
        lane.failed.append(outcome.fault.startswith("raised") or outcome.fault == "deadline")
        window = lane.failed.maxlen
        if lane.failed[-1] and len(lane.failed) == window and (share := sum(lane.failed) / window) > lane.error_rate:
            last = "".join(f"\n  {text}" for text in dict.fromkeys([*lane.account.last_faults, f"{outcome.fault}: {outcome.text}"]))
            raise ToolsStoppedError(
                f"{outcome.tool} failed in {share:.0%} of its last {window} calls, which is more than {lane.error_rate:.0%} "
                f"(tools.limits.error_rate). The last errors:{last}"
            )

    # --- what a run keeps and says

    def spent(self) -> dict[str, Any]:
        """The accounts as JSON values."""
        return {name: account.plain() for name, account in sorted(self.usage.items())}

    def keep(self, folder: Path) -> None:
        """Take over the accounts in `folder`, and keep them there while calls are made: what a process spends that is killed counts
        against the budget of the next one. Raises FormatError."""
        self.go_on(read_usage(folder))
        self._book = UsageLog(folder)

    def write_down(self) -> None:
        """Write the accounts into the folder in which they are kept, if they are."""
        if self._book is not None:
            self._book.write(self.spent())

    def _note(self, *, money: bool) -> None:
        if self._book is not None and self._book.due(money=money):
            self._book.note(self.spent())

    def go_on(self, spent: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what an earlier start of this run spent."""
        for name, values in spent.items():
            self._lane(name).account.merge(values)

    def notes(self) -> list[str]:
        """What is to be said at the start of a run: which tools answer from where."""
        if self.cache is None:
            return []
        kept = sorted(name for name, lane in self.lanes.items() if lane.kept is not None)
        others = sorted(name for name, lane in self.lanes.items() if lane.kept is None)
        entries, size, recorded = self.cache.store.totals()
        held = f"{recorded:,} recorded results" if self.cache.mode != "live" else f"{entries - recorded:,} cached results"
        says = {"live": "cached", "record": "recorded", "replay": "replayed"}[self.cache.mode]
        run = f"; {_listed(others)} always run{'s' if len(others) == 1 else ''}" if others else ""
        return [f"calls of {_listed(kept)} are {says} ({self.cache.store.path}: {held}, {size / 2**20:.1f} MB in all){run}"]


def build_gateway(config: ToolsConfig, entries: Sequence[Sequence[Tool]]) -> ToolGateway:
    """What stands around the tools of each entry of `config.offered` (as `arpo.tools.config.build_entries` gives them).

    Raises ConfigError where the store cannot be used, a stateful tool is to be kept, a replay has nothing to replay, or a tool
    cannot be called.
    """
    tool_gateway = around(config, entries)
    for error in unready(config, entries, tool_gateway).values():
        raise error
    return tool_gateway


def unready(config: ToolsConfig, entries: Sequence[Sequence[Tool]], tool_gateway: ToolGateway) -> dict[str, ConfigError]:
    """Why tools cannot be called, by name: for want of a key, for instance. A replay calls none that it has a record for."""
    found = {}
    for number, tools in enumerate(entries):
        for tool in tools:
            if config.mode != "replay" or tool_gateway.lanes[tool.name].kept is None:
                try:
                    _check_ready(tool, f"tools.offered.{number}")
                except ConfigError as error:
                    found[tool.name] = error
    return found


def around(config: ToolsConfig, entries: Sequence[Sequence[Tool]]) -> ToolGateway:
    """As `build_traffic`, whether or not a tool can be called."""
    tool_gateway = ToolGateway(limits=config.limits)
    providers: dict[str, Provider] = {}
    for number, (tools, offered) in enumerate(zip(entries, config.offered, strict=True)):
        for tool in tools:
            own = offered if isinstance(offered, ToolConfig) else ToolConfig(use=import_path(getattr(tool, "function", tool)))
            tool_gateway.lanes[tool.name] = RateLimit(
                provider=tool_gateway._shared(providers, tool, own.limits),
                tool=tool,
                kept=_kept(config, own, tool, f"tools.offered.{number}.cache.keep"),
                limits=own.limits,
                error_rate=_rate(own.limits.error_rate, config.limits.error_rate),
                failed=deque(maxlen=config.limits.error_window),
            )
    if any(lane.kept for lane in tool_gateway.lanes.values()):
        file, known = _file(config), config.mode != "replay" or _file(config).is_file()  # a replay makes no file
        store = Store(file, max_bytes=int(config.cache.max_mb * 2**20)) if known else None
        if store is None or (config.mode == "replay" and not store.totals()[2]):
            hint = "Run with tools.mode=record first, or `arpo cache import`"
            raise ConfigError("there is no recorded call to replay", where="tools.cache.file", value=str(file), hint=hint)
        tool_gateway.cache = Cache(store, config.mode, tool_gateway._tell)
        if config.mode == "record":
            _note_offers(store, tool_gateway)
    elif config.mode != "live":
        hint = "A tool says so by `cacheable = True`, a recipe by `cache: {keep: true}` at the tool"
        raise ConfigError(
            "no tool's results may be kept, so there is nothing to record", where="tools.mode", value=config.mode, hint=hint
        )
    return tool_gateway


def recorded_offers(config: ToolsConfig) -> dict[str, list[dict[str, Any]]] | None:
    """For a replay: what tools the recorded servers had (see `build_entries`). None where servers are asked. Raises ConfigError."""
    if config.mode != "replay":
        return None
    if not _file(config).is_file():
        return {}
    store = Store(_file(config))
    offers = store.offers()
    store.close()
    return offers


def _file(config: ToolsConfig) -> Path:
    return expanded(config.cache.file) if config.cache.file else cache_folder() / "tools.sqlite"


def _note_offers(store: Store, tool_gateway: ToolGateway) -> None:
    servers: dict[str, list[Any]] = {}
    for lane in tool_gateway.lanes.values():
        if lane.kept is not None and (offer := getattr(lane.tool, "offer", None)) is not None:
            servers.setdefault(lane.provider.name, []).append(offer)
    for server, tools in servers.items():
        store.note_offers(server, tools)


def _keyed(tool: Tool, arguments: Mapping[str, Any], context: CallContext) -> Mapping[str, Any] | None:
    """The arguments under which a result is kept. None where the tool cannot make sense of them: then it is called, and says so."""
    given: Any = tool
    try:
        if hasattr(given, "complete"):
            arguments = given.complete(arguments, context)
        return given.normalise(arguments) if hasattr(given, "normalise") else arguments
    except Exception:  # noqa: BLE001  a tool's code, given what a model wrote
        return None


def _check_ready(tool: Tool, where: str) -> None:
    """Ask a tool whether it can be called, where it has something to say about that. Raises ConfigError with its place."""
    if (ready := getattr(tool, "ready", None)) is None:
        return
    try:
        ready()
    except ConfigError as error:
        at = f"{where}.options.{error.where}" if error.where else where
        raise ConfigError(error.message, where=at, value=error.value, hint=error.hint) from error


def _kept(config: ToolsConfig, own: ToolConfig, tool: Tool, where: str) -> CachePolicy | None:
    keep = bool(getattr(tool, "cacheable", False)) if own.cache.keep is None else own.cache.keep
    if not keep:
        return None
    if hasattr(tool, "open"):
        raise ConfigError("this tool has a state, so its results depend on more than its arguments", where=where, value=True)
    version = str(getattr(tool, "version", "")) or digest(own.use, own.options)
    return CachePolicy(
        tool=tool.name,
        version=version,
        schema=tool.schema,
        fresh_s=(own.cache.days or config.cache.days) * DAY_S,
        empty_s=(own.cache.empty_days or config.cache.empty_days) * DAY_S,
    )


def _stricter(one: float, other: float) -> float:
    """The smaller of two limits, where 0 is none."""
    return min(one, other) if one and other else one or other


def _rate(own: float | None, shared: float | None) -> float:
    return own if own is not None else 1.0 if shared is None else shared


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _on_stderr(text: str, level: str) -> None:
    print(text if level == "info" else f"{level}: {text}", file=sys.stderr)
