"""How a call ended, and the text that the model sees. The trainer derives both from the zygote's answer and the
program's output."""

import signal
from dataclasses import dataclass
from typing import Any

from arpo.sandbox import messages, payload, program
from arpo.sandbox.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The result of a call. `ending` is "ok", "error", "time", "cpu", or "" if the call did not run. `gone`: the
    session no longer exists (or, if the call did not run, did not exist)."""

    text: str
    ending: str = "ok"
    gone: bool = False


def ran(answer: dict[str, Any], output: int, limits: Limits, seconds: float) -> Ran:
    """The result of a call, from the `answer` of the program inside (`Call.end`), the file descriptor of the program's
    `output`, and its time limit in `seconds`."""
    gone = bool(answer.get("gone"))
    if "code" not in answer:
        return Ran(text="", ending="", gone=gone)
    text, spilled = payload.read_output(output, limits.output_bytes)
    code, killed = int(answer["code"]), answer.get("killed", "")
    if killed in ("time", "stopped"):
        ending, line = "time", messages.out_of_time(seconds)
    elif killed == "cpu" or answer.get("used_up") or code in (program.OUT_OF_CPU, -signal.SIGXCPU):
        ending, line = "cpu", messages.out_of_cpu(limits.cpu_seconds)
    elif gone and code >= 0:  # only a program ends the process of its session
        ending, line = "error", messages.LEFT
    elif killed == "files":
        ending, line = "error", messages.file_too_large(limits.file_mb)
    elif spilled or code == program.OUT_OF_OUTPUT:
        ending, line = "error", messages.too_much_output(limits.output_bytes)
    elif code < 0:
        ending, line = "error", messages.killed_by(-code)
    else:
        ending, line = ("ok" if code == program.FINE else "error"), ""
    return Ran(text="\n".join(part for part in (text.rstrip("\n"), line) if part), ending=ending, gone=gone)
