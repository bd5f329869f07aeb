"""The gateway that every tool call passes: answered from the cache or made, within limits and budgets.

    call ─ admitted? ─ cached, recorded or in flight? ─ provider's limits ─ budget? ─ attempt (arpo.tools.call) ─ usage

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
from arpo.terminal_safe import print_line
from arpo.tools import CallContext, StatefulTool, ToolBase
from arpo.tools.cache import DAY_S, Cache, CachePolicy
from arpo.tools.cache_key import digest
from arpo.tools.call import admitted, attempt, unavailable
from arpo.tools.config import ToolConfig, ToolsConfig
from arpo.tools.function import FunctionTool
from arpo.tools.settings import DEFAULT_LIMITS, EMPTY_DAYS, ERROR_WINDOW, LimitsConfig
from arpo.tools.store import Store
from arpo.tools.usage import UNKNOWN, ToolUsage, UsageLog, read_usage


@dataclass(slots=True, kw_only=True)
class RateLimit:
    """The limits of one tool and how much of them is used. `tool` None: tools that tasks bring under this name."""

    provider: Provider
    tool: ToolBase | None = None
    cache_policy: CachePolicy | None = None  # None: no result is cached
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    error_rate: float = 1.0
    recent_failures: deque[bool] = field(default_factory=lambda: deque(maxlen=ERROR_WINDOW))  # of the last calls
    usage: ToolUsage = field(default_factory=ToolUsage)


class ToolGateway:
    """Makes the tool calls of a run. Without arguments it counts calls, and neither caches nor limits them.

    `tell(text, level)` is called when a provider's outage pauses the run and when the cache can no longer be written.
    """

    def __init__(self, limits: LimitsConfig | None = None) -> None:
        self.rate_limits: dict[str, RateLimit] = {}
        self.cache: Cache | None = None
        self.limits = (limits or LimitsConfig()).over(DEFAULT_LIMITS)
        self.tell: Tell = _on_stderr
        self._usage_log: UsageLog | None = None  # None: usage is not written down

    @property
    def usage(self) -> dict[str, ToolUsage]:
        """By the name of each tool that was called."""
        return {name: rate_limit.usage for name, rate_limit in self.rate_limits.items() if rate_limit.usage.asked}

    async def call(self, tools: Mapping[str, ToolBase], call: Call, context: CallContext) -> ToolCallResult:
        """The result of `call`, from the cache or from the tool.

        Raises ReplayMissError for a call that the record does not hold, ToolsStoppedError where the run must stop.
        """
        tool = admitted(tools, call)
        if isinstance(tool, ToolCallResult):
            self._rate_limit(call.name if call.name in tools else UNKNOWN).usage.add_answered(tool)
            return tool
        rate_limit = self._rate_limit(tool.name)
        keyed = None
        if self.cache is not None and rate_limit.cache_policy is not None and rate_limit.tool is tool:
            keyed = _keyed(tool, call.arguments, context)
        if self.cache is not None and rate_limit.cache_policy is not None and keyed is not None:
            outcome = await self.cache.outcome(
                rate_limit.cache_policy, keyed, lambda: self._make(rate_limit, tool, call, context)
            )
        else:
            outcome, _ = await self._make(rate_limit, tool, call, context)
        rate_limit.usage.add_answered(outcome)
        self._log_usage(money=False)
        return outcome

    async def _make(
        self, rate_limit: RateLimit, tool: ToolBase, call: Call, context: CallContext
    ) -> tuple[ToolCallResult, bool]:
        async def once() -> tuple[ToolCallResult, bool]:
            self._check_budget(tool.name, rate_limit)
            return await attempt(tool, call.arguments, context, lambda text: self._tell(text, "warning"))

        try:
            (outcome, empty), attempts = await rate_limit.provider.call(once)
        except ProviderError as error:
            return unavailable(tool, error), False
        rate_limit.usage.add_executed(outcome)
        self._log_usage(money=outcome.cost > 0)
        self._check_error_rate(rate_limit, outcome)
        return (outcome if attempts == 1 else replace(outcome, attempts=attempts)), empty

    def _rate_limit(self, name: str) -> RateLimit:
        rate_limit = self.rate_limits.get(name)
        if rate_limit is None:
            rate_limit = self.rate_limits[name] = RateLimit(
                provider=self._provider(name), error_rate=self.limits.error_rate or 1.0
            )
        return rate_limit

    def _provider(self, name: str, own: LimitsConfig = LimitsConfig()) -> Provider:
        limits = own.over(self.limits)
        return Provider(
            name,
            rate=limits.rate or 0.0,
            concurrency=limits.concurrency or 0,
            retries=limits.retries or 0,
            patience_s=limits.patience_s or 0.0,
            tell=self._tell,
        )

    def _shared(self, providers: dict[str, Provider], tool: ToolBase, limits: LimitsConfig) -> Provider:
        """The provider that `tool` shares with others, with the strictest of their limits."""
        name = tool.provider or tool.name
        made = self._provider(name, limits)
        provider = providers.setdefault(name, made)
        provider.rate = _stricter(provider.rate, made.rate)
        for most in (made.concurrency, tool.concurrency):
            provider.concurrency = int(_stricter(provider.concurrency, most))
        return provider

    def shared_by(self, tools: Sequence[ToolBase], name: str, concurrency: int) -> Provider:
        """The provider of an environment's tools and steps, with its limit of concurrency."""
        provider = self._provider(name)
        provider.concurrency = int(_stricter(provider.concurrency, concurrency))
        for tool in tools:
            self.rate_limits[tool.name] = RateLimit(
                provider=provider, tool=tool, error_rate=self.limits.error_rate or 1.0
            )
        return provider

    def _tell(self, text: str, level: str) -> None:
        self.tell(text, level)

    # --- budgets and error rates

    def _check_budget(self, name: str, rate_limit: RateLimit) -> None:
        """Count an attempt that is about to be made. Raises ToolsStoppedError where a budget is used up."""
        for limits, usages, what, key in (
            (rate_limit.limits, (rate_limit.usage,), f"of {name}", f"limits of {name} (tools.offered)"),
            (self.limits, (one.usage for one in self.rate_limits.values()), "of tools", "tools.limits"),
        ):
            if limits.calls is None and limits.money is None:
                continue
            paid = [(one.attempts, one.cost) for one in usages]
            calls, money = sum(n for n, _ in paid), sum(cost for _, cost in paid)
            spent = limits.calls is not None and calls >= limits.calls
            if spent or (limits.money is not None and money >= limits.money):
                used = f"{calls:,} calls" if spent else f"{money:.4g} in money for {calls:,} calls"
                setting = "calls" if spent else "money"
                hint = f"To go on, raise `{setting}` in the {key} and resume the run"
                raise ToolsStoppedError(f"the run's budget for calls {what} is used up: {used}. {hint}")
        rate_limit.usage.attempts += 1

    def _check_error_rate(self, rate_limit: RateLimit, outcome: ToolCallResult) -> None:
        """Raises ToolsStoppedError where too large a share of the tool's last calls failed."""
        rate_limit.recent_failures.append(outcome.fault.startswith("raised") or outcome.fault == "deadline")
        window = rate_limit.recent_failures.maxlen
        if (
            rate_limit.recent_failures[-1]
            and len(rate_limit.recent_failures) == window
            and (share := sum(rate_limit.recent_failures) / window) > rate_limit.error_rate
        ):
            last = "".join(
                f"\n  {text}"
                for text in dict.fromkeys([*rate_limit.usage.last_faults, f"{outcome.fault}: {outcome.text}"])
            )
            raise ToolsStoppedError(
                f"{outcome.tool} failed in {share:.0%} of its last {window} calls, which is more than "
                f"{rate_limit.error_rate:.0%} (tools.limits.error_rate). The last errors:{last}"
            )

    # --- usage over restarts

    def spent(self) -> dict[str, Any]:
        """Usage by tool, as JSON values."""
        return {name: usage.as_json() for name, usage in sorted(self.usage.items())}

    def keep(self, folder: Path) -> None:
        """Add the usage that `folder` holds, and write it there while calls are made, so that what a killed process
        spent counts against the budget of the next one. Raises FormatError."""
        self.go_on(read_usage(folder))
        self._usage_log = UsageLog(folder)

    def write_down(self) -> None:
        """Write the usage into the folder of `keep`, if there is one."""
        if self._usage_log is not None:
            self._usage_log.write(self.spent())

    def _log_usage(self, *, money: bool) -> None:
        if self._usage_log is not None and self._usage_log.due(money=money):
            self._usage_log.write_soon(self.spent())

    def go_on(self, spent: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what an earlier start of this run spent."""
        for name, values in spent.items():
            self._rate_limit(name).usage.merge(values)

    def notes(self) -> list[str]:
        """Lines to show at the start of a run: which tools are cached, recorded or replayed, and from which file."""
        if self.cache is None:
            return []
        kept = sorted(name for name, rate_limit in self.rate_limits.items() if rate_limit.cache_policy is not None)
        others = sorted(name for name, rate_limit in self.rate_limits.items() if rate_limit.cache_policy is None)
        entries, size, recorded = self.cache.store.totals()
        held = (
            f"{recorded:,} recorded results" if self.cache.mode != "live" else f"{entries - recorded:,} cached results"
        )
        says = {"live": "cached", "record": "recorded", "replay": "replayed"}[self.cache.mode]
        run = f"; {_listed(others)} always run{'s' if len(others) == 1 else ''}" if others else ""
        return [
            f"calls of {_listed(kept)} are {says} ({self.cache.store.path}: {held}, {size / 2**20:.1f} MB in all){run}"
        ]


def build_gateway(config: ToolsConfig, entries: Sequence[Sequence[ToolBase]]) -> ToolGateway:
    """The gateway to the tools of each entry of `config.offered` (from `arpo.tools.config.build_entries`).

    Raises ConfigError where the cache file cannot be used, a stateful tool is to be cached, there is nothing to replay,
    or a tool is not ready.
    """
    tool_gateway = build_unchecked(config, entries)
    for error in tools_not_ready(config, entries, tool_gateway).values():
        raise error
    return tool_gateway


def tools_not_ready(
    config: ToolsConfig, entries: Sequence[Sequence[ToolBase]], tool_gateway: ToolGateway
) -> dict[str, ConfigError]:
    """Why a tool cannot be called (a missing key, for instance), by its name. A replay calls no tool that is
    recorded."""
    found = {}
    for number, tools in enumerate(entries):
        for tool in tools:
            if config.mode != "replay" or tool_gateway.rate_limits[tool.name].cache_policy is None:
                try:
                    _check_ready(tool, f"tools.offered.{number}")
                except ConfigError as error:
                    found[tool.name] = error
    return found


def build_unchecked(config: ToolsConfig, entries: Sequence[Sequence[ToolBase]]) -> ToolGateway:
    """As `build_gateway`, without asking the tools whether they are ready."""
    tool_gateway = ToolGateway(limits=config.limits)
    providers: dict[str, Provider] = {}
    for number, (tools, offered) in enumerate(zip(entries, config.offered, strict=True)):
        for tool in tools:
            own = offered if isinstance(offered, ToolConfig) else ToolConfig(use=_path_of(offered))
            tool_gateway.rate_limits[tool.name] = RateLimit(
                provider=tool_gateway._shared(providers, tool, own.limits),
                tool=tool,
                cache_policy=_cache_policy(config, own, tool, f"tools.offered.{number}.cache"),
                limits=own.limits,
                error_rate=own.limits.over(tool_gateway.limits).error_rate or 1.0,
            )
    if any(rate_limit.cache_policy for rate_limit in tool_gateway.rate_limits.values()):
        file, known = _file(config), config.mode != "replay" or _file(config).is_file()  # a replay makes no file
        store = Store(file, max_bytes=int(config.cache.max_mb * 2**20)) if known else None
        if store is None or (config.mode == "replay" and not store.totals()[2]):
            hint = "Run with tools.mode=record first, or `arpo cache import`"
            raise ConfigError(
                "there is no recorded call to replay", where="tools.cache.file", value=str(file), hint=hint
            )
        tool_gateway.cache = Cache(store, config.mode, tool_gateway._tell)
        if config.mode == "record":
            _note_offers(store, tool_gateway)
    elif config.mode != "live":
        hint = "A tool says so by `cacheable = True`, a recipe by `cache: true` at the tool"
        raise ConfigError(
            "no tool's results may be kept, so there is nothing to record",
            where="tools.mode",
            value=config.mode,
            hint=hint,
        )
    return tool_gateway


def recorded_offers(config: ToolsConfig) -> dict[str, list[dict[str, Any]]] | None:
    """For a replay: the tools of each recorded server (see `build_entries`); None in other modes. Raises
    ConfigError."""
    if config.mode != "replay":
        return None
    if not _file(config).is_file():
        return {}
    store = Store(_file(config))
    offers = store.offers()
    store.close()
    return offers


def _path_of(offered: Any) -> str:
    """The import path of a tool or function that was given in Python."""
    return import_path(offered.function if isinstance(offered, FunctionTool) else offered)


def _file(config: ToolsConfig) -> Path:
    return expanded(config.cache.file) if config.cache.file else cache_folder() / "tools.sqlite"


def _note_offers(store: Store, tool_gateway: ToolGateway) -> None:
    servers: dict[str, list[Any]] = {}
    for rate_limit in tool_gateway.rate_limits.values():
        if rate_limit.cache_policy is not None and rate_limit.tool is not None and rate_limit.tool.offer is not None:
            servers.setdefault(rate_limit.provider.name, []).append(rate_limit.tool.offer)
    for server, tools in servers.items():
        store.note_offers(server, tools)


def _keyed(tool: ToolBase, arguments: Mapping[str, Any], context: CallContext) -> Mapping[str, Any] | None:
    """The arguments under which a result is cached; None where the tool raises for them: it is then called and reports
    why."""
    try:
        return tool.normalise(tool.complete(arguments, context))
    except Exception:  # noqa: BLE001  a tool's code, given what a model wrote
        return None


def _check_ready(tool: ToolBase, where: str) -> None:
    """Raises the ConfigError of a tool that is not ready, with the place of the tool in the recipe."""
    try:
        tool.ready()
    except ConfigError as error:
        at = f"{where}.options.{error.where}" if error.where else where
        raise ConfigError(error.message, where=at, value=error.value, hint=error.hint) from error


def _cache_policy(config: ToolsConfig, own: ToolConfig, tool: ToolBase, where: str) -> CachePolicy | None:
    if not (tool.cacheable if own.cache is None else own.cache):
        return None
    if isinstance(tool, StatefulTool):
        raise ConfigError(
            "this tool has a state, so its results depend on more than its arguments", where=where, value=True
        )
    version = tool.version or digest(own.use, own.options)
    days = config.cache.days if own.cache is None or own.cache is True else own.cache
    return CachePolicy(
        tool=tool.name,
        version=version,
        schema=tool.schema,
        fresh_s=days * DAY_S,
        empty_s=min(days, EMPTY_DAYS) * DAY_S,
    )


def _stricter(one: float, other: float) -> float:
    """The smaller of two limits, where 0 is none."""
    return min(one, other) if one and other else one or other


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _on_stderr(text: str, level: str) -> None:
    print_line(text if level == "info" else f"{level}: {text}", sys.stderr)
