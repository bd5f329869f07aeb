"""The part of a recipe about rollouts: leaves, roots, the branching rule, and the limits of a branch."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, WrapValidator, model_validator

from arpo.config import Config, conflict
from arpo.core.adaptive import AnyRule, Spread
from arpo.core.branching import DEEPEST, BranchRule, Never, Paper, Rank
from arpo.core.expansion import Leftover
from arpo.core.roots import Constant, PassRate, Pilot
from arpo.errors import ConfigError, nearest
from arpo.import_path import import_from_path
from arpo.options import UseWithOptions, build, check_options, custom


def _rule(given: Any, check: Callable[[Any], Any]) -> Any:
    """A recipe's `paper` or `{rule: paper, beta: 0.4}`, a `BranchRule`, or the import path of one or of its class,
    which may stand with options: `{use: "my_rules:Tired", options: {deepest: 2}}`."""
    if isinstance(given, str) and ":" in given:
        return _own_rule(given, {}, "rollout.rule")
    if isinstance(given, CustomRule) or (callable(given) and isinstance(given, BranchRule)):
        return given
    if isinstance(given, Mapping) and "use" in given:
        return custom(CustomRule, given, "rollout.rule")
    if isinstance(given, str):
        given = {"rule": given}
    elif isinstance(given, Mapping) and "rule" not in given:
        given = {"rule": "paper", **given}
    return check(given)


def _own_rule(path: str, options: Mapping[str, Any], where: str) -> BranchRule:
    """The rule that an import path names, or that its class or function makes of `options`. Raises ConfigError."""
    target = import_from_path(path, where)
    if isinstance(target, type) or (options and not isinstance(target, BranchRule)):
        rule = build(target, options, where, path) if callable(target) else target
    elif options:
        raise ConfigError("this rule is already built and takes no options", where=f"{where}.options", value=options)
    else:
        rule = target
    if not (callable(rule) and isinstance(rule, BranchRule)):
        hint = "It needs `__call__(tip, stats, random)` and `most(depth)`: see arpo.core.branching.BranchRule"
        raise ConfigError("is no branching rule", where=where, value=path, hint=hint)
    return rule


class CustomRule(UseWithOptions):
    """A branching rule of your own: a class, or a function that makes one, and its options."""

    @cached_property
    def built(self) -> BranchRule:
        return _own_rule(self.use, self.options, "rollout.rule")

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        _ = self.built
        return self


def _roots(given: Any, check: Callable[[Any], Any]) -> Any:
    """A recipe's `8`, `pilot` or `{plan: pilot, beta: 1}`, or a root plan of arpo.core."""
    if isinstance(given, Constant):
        return given.roots
    if isinstance(given, Mapping) and "plan" not in given:
        given = {"plan": "pilot", **given}
    return check({"plan": given} if given in ("pilot", "pass_rate") else given)


def _kind_of_roots(given: Any) -> str:
    if isinstance(given, PassRate) or (isinstance(given, Mapping) and given.get("plan") == "pass_rate"):
        return "pass_rate"
    return "pilot" if isinstance(given, Mapping | Pilot) else "count"


RuleChoice = Annotated[Annotated[AnyRule, Field(discriminator="rule")], WrapValidator(_rule)]
RootsChoice = Annotated[
    Annotated[
        Annotated[Annotated[int, Field(ge=1)], Tag("count")]
        | Annotated[Pilot, Tag("pilot")]
        | Annotated[PassRate, Tag("pass_rate")],
        Discriminator(_kind_of_roots),
    ],
    WrapValidator(_roots),
]


KEEP = "keep"
CONTEXT_POLICIES = {
    name: f"arpo.rollout.contexts:{name}" for name in ("recompose", "drop_results", "strip_thoughts", "summarise")
}
"""Import paths by the names in a recipe."""


class ContextConfig(UseWithOptions):
    """How a context that is full is rewritten between two turns; see [contexts.md](contexts.md)."""

    use: str = KEEP
    """keep, recompose, drop_results, strip_thoughts, summarise, or the import path of a function of your own:
    `(messages, budget)` to messages."""
    at: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a context from which on it is rewritten; null: branch_tokens less two turns, or half of it, whichever
    is more. The new one should have at most half as many."""

    @cached_property
    def policy(self) -> partial[Any]:
        """`(messages, budget)` to messages."""
        path = CONTEXT_POLICIES.get(self.use, self.use)
        return partial(import_from_path(path, "rollout.context"), **self.options)

    @property
    def by_policy(self) -> bool:
        """Whether the policy that is trained sums its contexts up."""
        return self.use == "summarise" and "endpoint" not in self.options

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.use == KEEP:
            if self.options or self.at:
                raise conflict("keep rewrites no context and has no options", "use")
            return self
        if self.use not in CONTEXT_POLICIES and ":" not in self.use:
            known = [KEEP, *CONTEXT_POLICIES]
            hint = nearest(self.use, known) or f"One of {', '.join(known)}, or module:function"
            raise ConfigError("no such policy", where="rollout.context", value=self.use, hint=hint)
        check_options(self.policy.func, self.options, "rollout.context")
        return self


def _context(given: Any) -> Any:
    """A recipe's `recompose` or `{use: recompose, at: 1500, options: {keep: 2}}`."""
    return {"use": given} if isinstance(given, str) else given


class RolloutConfig(Config):
    """How the tree of one task grows."""

    leaves: Annotated[int, Field(ge=1)] = 16
    """Finished trajectories a task, M."""
    roots: RootsChoice = 8
    """How many of them start from the prompt, N; or `pilot` (`{plan: pilot, beta: 1}`): a first trajectory decides, as
    in AEPO; or `pass_rate` (`{plan: pass_rate, least: 2}`): the more, the less often the task has been solved."""
    root_cap: Annotated[int, Field(ge=1)] | None = None
    """Most leaves below one root; null: min(M, max(2, ceil(1.5 M / N)))."""
    head: Annotated[int, Field(ge=1)] = 20
    """Tokens after a tool result over which entropy is averaged, k."""
    rule: RuleChoice = Paper()
    """What branches at a tip: none, fixed, random, paper, released, threshold, aepo, rank, steered or spread; more:
    `{rule: paper, beta: 0.4}`. Or the import path of a rule of your own; with options: `{use: "my_rules:Tired",
    options: {deepest: 2}}`."""
    leftover: Leftover = "prompt"
    """Where leaves start that no tip's decision has used: at the `prompt`, at once (fills), or at the `tips` of the
    whole tree with the highest scores, once the roots have ended. The rules `rank` and `spread` need `tips`."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling in training; the learner computes log-probabilities at the same one."""
    max_calls: Annotated[int, Field(ge=0)] = 3
    """Tool calls a branch may make."""
    turn_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of one turn."""
    branch_tokens: Annotated[int, Field(ge=2)] = 4096
    """Most tokens of a branch, prompt and tool text included; where `context` rewrites contexts, of each of them."""
    context: Annotated[ContextConfig, BeforeValidator(_context)] = ContextConfig()
    """What becomes of a context that is full: `keep`, the branch ends; `recompose`, a new prompt of the task, what the
    model noted and the last results; `drop_results`; `strip_thoughts`; `summarise`, by the policy or by another model;
    or a function of your own. [contexts.md](contexts.md)."""
    at_call_limit: Literal["tell", "end"] = "tell"
    """After the last call the model is told that none is left and may answer, or a further call ends the branch."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a leaf is sampled again after an infrastructure failure (engine died, provider down)."""
    deadline_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a tool call may take, for tools without a deadline of their own, and a reward for one leaf."""
    _top_p: float = PrivateAttr(1.0)  # training samples from the whole distribution; evaluation has a key for it

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if isinstance(self.roots, int) and self.roots > self.leaves:
            raise conflict(f"roots ({self.roots}) cannot exceed leaves ({self.leaves})", "roots", "leaves")
        if (
            self.root_cap is not None
            and isinstance(self.roots, int)
            and self.root_cap * self.roots < self.leaves
            and self._branches
        ):
            raise conflict(
                f"root_cap ({self.root_cap}) x roots ({self.roots}) is less than leaves ({self.leaves}): fills "
                "would be the rule",
                "root_cap",
                "roots",
                "leaves",
            )
        if self._branches and self.max_calls == 0 and self.roots != self.leaves:
            raise conflict(
                "without tool calls (max_calls 0) no rule ever branches: set rule to none", "max_calls", "rule"
            )
        if isinstance(self.roots, PassRate) and self.roots.least > self.leaves:
            raise conflict(f"least ({self.roots.least}) cannot exceed leaves ({self.leaves})", "roots", "leaves")
        if isinstance(self.rule, Rank | Spread) and self.leftover != "tips":
            raise conflict(
                f"the rule {self.rule.rule} gives what is left to tips: set leftover to tips", "leftover", "rule"
            )
        if self.head > self.turn_tokens:
            raise conflict(
                f"head ({self.head}) cannot exceed turn_tokens ({self.turn_tokens}): no turn would be long enough",
                "head",
                "turn_tokens",
            )
        if self.turn_tokens >= self.branch_tokens:
            raise conflict(
                f"branch_tokens ({self.branch_tokens}) must exceed turn_tokens ({self.turn_tokens}): it counts "
                "all text",
                "branch_tokens",
                "turn_tokens",
            )
        if self.context.at is not None and self.context.at > self.branch_tokens:
            raise conflict(
                f"context.at ({self.context.at}) cannot exceed branch_tokens ({self.branch_tokens})",
                "context",
                "branch_tokens",
            )
        return self

    @property
    def context_limit(self) -> int:
        """Tokens of a context from which on it is rewritten."""
        return self.context.at or max(self.branch_tokens // 2, self.branch_tokens - 2 * self.turn_tokens)

    @property
    def top_p(self) -> float:
        """Of sampling: 1 but for evaluation, since below it the engine's distribution is not the learner's."""
        return self._top_p

    def planned_roots(self, pass_rate: float | None) -> int | Pilot:
        """N of a task with this running accuracy (None: not known), or the plan of a first trajectory."""
        roots = self.roots
        return roots.roots(self.leaves, pass_rate) if isinstance(roots, PassRate) else roots

    @property
    def branch_rule(self) -> BranchRule:
        """The rule itself, built."""
        return self.rule.built if isinstance(self.rule, CustomRule) else self.rule

    @property
    def _branches(self) -> bool:
        return not isinstance(self.rule, Never) or self.leftover == "tips"

    @property
    def never_branches(self) -> str:
        """Why no tree can branch although there is a rule for it; "" where there is none, or trees can."""
        if not self._branches:
            return ""
        if self.roots == self.leaves:
            return f"rollout.roots ({self.roots}) is rollout.leaves, so none is left for branches"
        if self.root_cap == 1:
            return "rollout.root_cap allows a root no leaf but its own"
        if self.leftover == "prompt" and not any(
            self.branch_rule.most(depth) for depth in range(1, min(self.max_calls, DEEPEST) + 1)
        ):
            return f"rollout.rule branches after none of {self.max_calls} calls (rollout.max_calls)"
        return ""

    def sized(self, leaves: int) -> "RolloutConfig":
        """The same way to grow with another number of leaves, and roots in proportion; one leaf does not branch."""
        if leaves == 1 or not self._branches:
            return self.flat(leaves=leaves, temperature=self.temperature, top_p=self.top_p)
        changed: dict[str, Any] = {"leaves": leaves}
        if isinstance(self.roots, int):
            changed["roots"] = roots = max(1, round(leaves * self.roots / self.leaves))
            if self.root_cap is not None and self.root_cap * roots < leaves:
                changed["root_cap"] = None
        return self.model_copy(update=changed)

    def flat(self, *, leaves: int, temperature: float, top_p: float = 1.0) -> "RolloutConfig":
        """The same limits without branching: `leaves` independent trajectories a task, as in evaluation (temperature 0:
        greedy)."""
        changed = {
            "leaves": leaves,
            "roots": leaves,
            "root_cap": None,
            "rule": Never(),
            "leftover": "prompt",
            "temperature": temperature,
        }
        flat = self.model_copy(update=changed)
        flat._top_p = top_p
        return flat
