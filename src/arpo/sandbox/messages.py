"""The messages that tell the model why a call was stopped: one line each, with fixed words for every case.

They contain no measured times and no addresses, so that the same call gives the same text.
"""

import signal

CRASHED = {
    signal.SIGSEGV: "the program crashed: it touched memory that is not its own",
    signal.SIGBUS: "the program crashed: it touched memory that is not there",
    signal.SIGABRT: "the program crashed: aborted",
    signal.SIGFPE: "the program crashed: arithmetic fault",
    signal.SIGILL: "the program crashed: no such instruction",
}


def out_of_time(seconds: float) -> str:
    return f"TimeoutError: stopped after {seconds:g} s"


def out_of_cpu(seconds: float) -> str:
    return f"TimeoutError: stopped after {seconds:g} s of CPU"


def out_of_memory(megabytes: int) -> str:
    return f"MemoryError: the program needs more than {megabytes} MB"


def file_too_large(megabytes: int) -> str:
    return f"OSError: a file, or all files together, would be larger than {megabytes} MB"


def no_more_processes(processes: int) -> str:
    return "OSError: no processes can be started here" if not processes else f"OSError: more than {processes} processes"


def too_much_output(kept: int) -> str:
    return f"stopped: more than {kept} bytes of output"


def too_many_descriptors(most: int) -> str:
    return f"OSError: more than {most} open files"


def killed_by(number: int) -> str:
    """The message for a signal that does not come from a limit."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    return CRASHED.get(number, f"the program was killed ({name})")  # type: ignore[call-overload, no-any-return]


LEFT = "the program ended its interpreter"
LOST = "the program ended the sandbox that it ran in"
NOT_AGAIN = (
    "SessionError: an earlier call of this session ended it when it was made again; all variables are lost, and the "
    "next call starts a new session"
)
NOTHING = "(no output)"
