"""Errors that a caller can act on.

    ArpoError
    ├── ConfigError       a user's mistake: names the place, the value and what would be right
    ├── EngineError       an engine could not answer (died, out of memory, unreachable)
    ├── ToolError         a tool could not be set up, or reports a failure itself
    │   ├── ProviderError the service behind a tool is down, slow, or refuses us: never the model's fault
    │   └── EnvironmentFailedError an episode of an environment cannot go on
    ├── ToolsStoppedError tool calls cannot continue, so the run stops: budget, failures, a provider that stays down
    ├── FormatError       a file from outside does not hold what it should (records, data)
    │   └── CarryError    a syntax of tool calls cannot write a call so that it reads back
    ├── RewardError       a reward raised, or returned a value that is not a number
    ├── LearnerError      a rank of the learner is lost
    ├── CheckpointError   a checkpoint is missing, truncated, or belongs to another model
    └── GateError         the first collected step is not fit for training

A mistake of the *model* or of a *tool* during a rollout is not an exception. It is data: it ends a branch with an
`arpo.core.StopReason`, which the record holds.
"""

import difflib
from collections.abc import Iterable

MOST_SHOWN = 300  # characters of a value in a message


class ArpoError(Exception):
    """Base of all errors that arpo raises on purpose."""


class ConfigError(ArpoError):
    """A configuration cannot work.

    `where` names file and key ("recipes/a.yaml: rollout.roots"), `value` is the value there, `hint` says what would be
    right.
    """

    def __init__(self, message: str, *, where: str = "", value: object = None, hint: str = "") -> None:
        self.message, self.where, self.value, self.hint = message, where, value, hint
        got = "" if value is None else f" (got {shown(value)})"
        super().__init__(f"{where + ': ' if where else ''}{message}{got}{'. ' + hint if hint else ''}")


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """A value for a message: its beginning of `most` characters, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  an integer of 5,000 digits, an object of a user
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[:most]}…"


class EngineError(ArpoError):
    """An engine could not answer: an infrastructure failure, so the branch is retried or leaves its group."""


class ToolError(ArpoError):
    """A tool cannot be set up, or reports a failure that the model should read."""


class ProviderError(ToolError):
    """The service behind a tool did not answer: an infrastructure failure, so the model does not see it and never
    trains on it.

    `retriable`: the same call may succeed later (429, 5xx, a broken connection), after `retry_after_s` seconds if the
    provider says so. Not retriable: every call fails until a user acts (a wrong key, an exhausted account). A call that
    the *model* got wrong (a bad query, a page that does not exist) is a ToolError. Never put a key in the message.
    """

    def __init__(
        self, message: str, *, retriable: bool = True, retry_after_s: float | None = None, provider: str = ""
    ) -> None:
        self.retriable, self.retry_after_s, self.provider = retriable, retry_after_s, provider
        super().__init__(message)


class EnvironmentFailedError(ToolError):
    """An episode of an environment cannot go on: its code raised, or was too late. The branch ends without a reward."""


class ContextChangedError(EnvironmentFailedError):
    """An outside agent asks for a turn that does not continue the trajectory. It ends without a reward."""


class ToolsStoppedError(ArpoError):
    """Tool calls cannot continue, so the run stops: a budget is used up, a tool fails too often, or a provider refuses
    us or stays down. The run keeps its results and can be resumed."""


class FormatError(ArpoError):
    """A file from outside does not hold what it should; the message names file, line and value."""


class CarryError(FormatError):
    """The syntax of a chat format cannot carry a turn: what it would write does not read back."""


class RewardError(ArpoError):
    """A reward raised, or returned a value that is not a finite number."""


class LearnerError(ArpoError):
    """A rank of the learner is lost. The run goes on from its last checkpoint when it is resumed."""


class CheckpointError(ArpoError):
    """A checkpoint is missing, truncated, or belongs to another model."""


class GateError(ArpoError):
    """The first collected step is not fit for training; the message names the gates that fail."""


def install(extra: str) -> str:
    """The command that installs an extra, for hints."""
    return f"pip install '.[{extra}]' in arpo's checkout"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint that names the closest of `words`, or all of them if none is close: `did you mean 'roots'?`."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(words)}"
