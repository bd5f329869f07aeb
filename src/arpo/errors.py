"""Errors a caller can act on.

    ArpoError
    ├── ConfigError       a user's mistake: names the place, the value and what would be right
    ├── EngineError       an engine could not answer (died, out of memory, unreachable)
    ├── ToolError         a tool could not be set up, or failed in a way it names itself
    │   └── ProviderError what stands behind a tool is down, slow, or refuses us: never the model's fault
    ├── ToolsStoppedError tool calls cannot go on, and so the run cannot: budget, failures, a provider that stays down
    ├── FormatError       a file from outside does not hold what it should (records, data)
    ├── RewardError       a reward raised or returned something that is no number
    └── CheckpointError   a checkpoint is missing, truncated or of another model

What a *model* or a *tool* does wrong while a rollout runs is no exception: it is data, ends a branch with a named
`arpo.core.StopReason` and shows in the record.
"""

import difflib
from collections.abc import Iterable


class ArpoError(Exception):
    """Base of everything raised on purpose by arpo."""


class ConfigError(ArpoError):
    """What a user configured cannot work.

    `where` names file and key ("recipes/a.yaml: rollout.roots"), `value` is what stands there, `hint` what would be right.
    """

    def __init__(self, message: str, *, where: str = "", value: object = None, hint: str = "") -> None:
        self.message, self.where, self.value, self.hint = message, where, value, hint
        shown = "" if value is None else f" (got {value!r})"
        super().__init__(f"{where + ': ' if where else ''}{message}{shown}{'. ' + hint if hint else ''}")


class EngineError(ArpoError):
    """An engine could not answer: the world's fault, so the branch is asked again or leaves its group."""


class ToolError(ArpoError):
    """A tool cannot be set up, or reports a failure that the model should read."""


class ProviderError(ToolError):
    """The service behind a tool did not answer: the world's fault, so the model is not told and never trained on it.

    `retriable`: the same call may work later (429, 5xx, a connection that broke), after `retry_after_s` seconds where the
    provider said so. Not retriable: no call will get through until a user acts (a wrong key, an exhausted account). A call
    that the *model* got wrong (a bad query, a page that does not exist) is a plain ToolError. Never put a key in the message.
    """

    def __init__(self, message: str, *, retriable: bool = True, retry_after_s: float | None = None, provider: str = "") -> None:
        self.retriable, self.retry_after_s, self.provider = retriable, retry_after_s, provider
        super().__init__(message)


class ToolsStoppedError(ArpoError):
    """Tool calls cannot go on, and the run stops: a budget is used up, a tool fails too often, a provider refuses us or stays
    down. What was computed is kept, and the run can be resumed."""


class FormatError(ArpoError):
    """A file from outside does not hold what it should; the message names file, line and value."""


class RewardError(ArpoError):
    """A reward raised, or returned something that is not a finite number."""


class CheckpointError(ArpoError):
    """A checkpoint is missing, truncated, or belongs to another model."""


def install(extra: str) -> str:
    """How to get the packages of an extra, for hints."""
    return f"pip install '.[{extra}]' in arpo's checkout"


def first_line(error: BaseException) -> str:
    """What `error` says on its first line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint naming the closest of `words`, or all of them when none is close: `did you mean 'roots'?`."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(words)}"


class GateError(ArpoError):
    """The first collected step is not fit to be trained on; names the gates that fail."""
