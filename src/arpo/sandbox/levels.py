"""Finds out which sandboxes this machine allows, by entering them, and starts the strongest one.

    bubblewrap   private root, processes, network and users by bwrap; Landlock and seccomp around every call
    namespaces   the same by arpo, if bwrap is not installed
    landlock     without namespaces (some containers, AppArmor): Landlock and seccomp around every call block files,
                 network and signals; names of files and running processes stay visible, and files are counted
                 instead of bounded
    weak         a fresh interpreter with rlimits and nothing else, only if the recipe names it

A requested level that this machine does not allow is a ConfigError. There is no fallback to a weaker level.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.errors import ConfigError, nearest
from arpo.sandbox import bubblewrap, landlock, linux
from arpo.sandbox.child import ENVIRONMENT
from arpo.sandbox.limits import Limits
from arpo.sandbox.syscalls import TABLES
from arpo.sandbox.warm import StartError, WarmSandbox

LEVELS = ("bubblewrap", "namespaces", "landlock")  # strongest first
ADVICE = (
    "Install bubblewrap (apt install bubblewrap), or let this container make user namespaces; "
    "backend: monty runs simple Python anywhere; level: weak with allow_weak_isolation: true runs it unprotected"
)
_HOLES = """
import os, socket
holes = []
def hole(name, act):
    try:
        act()
    except OSError:
        return
    holes.append(name)
hole("files can be read", lambda: open({canary!r}).read())
hole("files can be written", lambda: open({canary!r}, "a"))
hole("sockets can be opened", socket.socket)
hole("other processes can be signalled", lambda: os.kill(os.getppid(), 0))
if set(os.environ) - {known!r}:
    holes.append("the environment can be seen")
print(", ".join(holes) or "closed")
"""


@dataclass(frozen=True, slots=True)
class LevelProbe:
    """The result of trying a level, with the `reason` if it does not work here."""

    level: str
    works: bool
    reason: str = ""


def start(
    level: str = "auto", *, limits: Limits, imports: Sequence[str] = (), at_once: int = 16, sessions: int = 0
) -> WarmSandbox:
    """The strongest sandbox that this machine allows, at least `level`, tested from inside. Raises ConfigError."""
    if level != "auto" and level not in LEVELS:
        raise ConfigError("no such level", where="level", value=level, hint=nearest(level, ("auto", *LEVELS, "weak")))
    accepted = LEVELS if level == "auto" else LEVELS[: LEVELS.index(level) + 1]
    missing = []
    for candidate in accepted:
        try:
            return enter(candidate, limits=limits, imports=imports, at_once=at_once, sessions=sessions)
        except StartError as error:
            if error.stage == "import":
                hint = "It must be installed in this environment; folders of a project are not shown to the sandbox"
                raise ConfigError(
                    f"cannot be imported in the sandbox: {error}", where="imports", value=error.name, hint=hint
                ) from error
            missing.append(f"{candidate}: {error}")
    what = (
        "no sandbox works on this machine"
        if level == "auto"
        else f"no sandbox at level {level} or above works on this machine"
    )
    raise ConfigError(f"{what} ({'; '.join(missing)})", where="level", value=level, hint=ADVICE)


def probe() -> list[LevelProbe]:
    """Try every level: enter the sandbox and run a program that looks for ways out (a second or two)."""
    probes = []
    for level in LEVELS:
        try:
            sandbox = enter(level, limits=Limits(), at_once=1)
        except StartError as error:
            probes.append(LevelProbe(level, False, str(error)))
        else:
            sandbox.close()
            probes.append(LevelProbe(level, True))
    return probes


def words(sandbox: WarmSandbox) -> str:
    """How a running sandbox is isolated: "bubblewrap, landlock and seccomp"."""
    outer = [] if sandbox.level == "landlock" else [sandbox.level]
    return ", ".join(outer + (["landlock"] if sandbox.landlocked else [])) + " and seccomp"


def enter(
    level: str, *, limits: Limits, imports: Sequence[str] = (), at_once: int = 16, sessions: int = 0
) -> WarmSandbox:
    """A sandbox of exactly this level. Raises StartError if it does not start, or if a program finds a way out of
    it."""
    if linux.ARCHITECTURE not in TABLES:
        raise StartError(f"needs Linux on x86-64 or aarch64 (this is {os.uname().sysname} on {os.uname().machine})")
    if not hasattr(os, "memfd_create"):
        raise StartError("this Python was built for an older Linux (it has no os.memfd_create)")
    bwrap = bubblewrap.executable() if level == "bubblewrap" else ""
    if bwrap is None:
        raise StartError("bwrap is not installed")
    if not landlock.abi():
        raise StartError("this kernel has no Landlock (Linux 5.13, and `landlock` among its security modules)")
    problem = StartError("not tried")
    for own_users in (True,) if os.geteuid() else (False, True):  # only root of a container needs its own users
        try:
            sandbox = WarmSandbox(
                level,
                limits=limits,
                imports=imports,
                at_once=at_once,
                sessions=sessions,
                bwrap=bwrap,
                own_users=own_users,
            )
        except StartError as error:
            problem = error
            if error.stage == "import" or level != "bubblewrap":
                raise
            continue
        _look_for_holes(sandbox)
        return sandbox
    raise problem


def _look_for_holes(sandbox: WarmSandbox) -> None:
    """Run a program that tries forbidden actions. If one succeeds, close the sandbox and raise StartError."""
    with tempfile.NamedTemporaryFile(prefix="arpo-canary-") as canary:
        os.chmod(canary.name, 0o666)
        code = _HOLES.format(canary=canary.name, known={*ENVIRONMENT, "HOME", "TMPDIR"})
        holes = sandbox.run_now(code).text
    if holes.strip().strip("'") != "closed":
        sandbox.close()
        raise StartError(f"does not hold: {holes[:200]}")
