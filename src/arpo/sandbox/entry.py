"""Enters the sandbox: turns a process of the trainer into one that can do no harm, and only then imports packages and
serves.

Runs in a fresh interpreter, with only the standard library and ctypes. The order matters: every step drops a right.
"""

import contextlib
import gc
import importlib
import mmap
import os
import resource
import signal
import socket
import sys
import traceback

from arpo.sandbox import bubblewrap, child, linux, namespaces, packets
from arpo.sandbox.limits import MOST_FILES, MOST_TASKS, TASKS_KEPT, take_the_back_seat
from arpo.sandbox.setup import Setup
from arpo.sandbox.zygote import Zygote

PROC = 3  # the descriptor of /proc until the views of calls are made
FOLLOWING = {
    "numpy": "numpy.random",  # its seed belongs to the call
    "sympy": """
        sympy.assumptions.wrapper sympy.codegen.ast sympy.combinatorics sympy.combinatorics.tensor_can
        sympy.integrals.heurisch sympy.integrals.manualintegrate sympy.integrals.risch sympy.physics.units.systems
        sympy.sets.handlers.functions sympy.sets.handlers.issubset sympy.sets.setexpr sympy.tensor.tensor
    """,
}


def outside(setup: Setup, inside_words: list[str]) -> None:
    """The first stage, outside: lower the priority, then enter. `inside_words` is the command of the second stage."""
    take_the_back_seat()
    _be_first_to_go()
    _have_descriptors()
    _leave_processes_to_others()
    if setup.outer != "none":  # the view has no /proc
        proc = os.open("/proc", os.O_PATH)
        if proc != PROC:
            os.dup2(proc, PROC)
            os.close(proc)
        os.set_inheritable(PROC, True)
    os.umask(0o022)  # what is made for the view must be open to whoever root becomes
    if setup.outer == "bubblewrap":
        words = bubblewrap.command(setup.bwrap, setup.view, inside_words, own_users=setup.own_users)
        os.execv(words[0], words)
    control = _take_control()
    try:
        if setup.outer == "namespaces":
            namespaces.enter(setup.view)
        settle(setup, control)
    except OSError as error:
        packets.send(control, {"failed": str(error), "stage": "enter"})
        os._exit(1)


def inside(setup: Setup) -> None:
    """The second stage, if bubblewrap created the view."""
    control = _take_control()
    try:
        settle(setup, control)
    except OSError as error:
        packets.send(control, {"failed": str(error), "stage": "enter"})
        os._exit(1)


def settle(setup: Setup, control: socket.socket) -> None:
    """Inside the view: mount, drop all rights, import, serve. Never returns."""
    folders = [setup.scratch]
    if setup.outer != "none":
        folders = [os.path.join(setup.scratch, str(number)) for number in range(setup.slots)]
        namespaces.mount_scratch(folders, setup.limits.file_mb, MOST_FILES)
    own = os.path.dirname(os.path.abspath(__file__))
    namespaces.give_up_rights([*setup.path, own, os.__file__], folders)
    views = namespaces.views(folders, PROC) if setup.outer != "none" else []
    if setup.outer != "none":  # else its parent is a thread of the trainer's, which may end before the trainer does
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(PROC)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    os.umask(0o077)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # no other process may read its memory
    sys.path[:] = setup.path
    for name in setup.imports:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001  whatever a package raises when imported
            packets.send(control, {"failed": f"{type(error).__name__}: {error}", "stage": "import", "name": name})
            os._exit(1)
    _import_what_follows()
    gc.collect()
    gc.freeze()
    zygote = Zygote(setup, control, _address_space_in_child(), views)
    try:
        zygote.serve()
    except BaseException:  # noqa: BLE001  written down before everything ends with it
        traceback.print_exc()
    zygote.end()


def _import_what_follows() -> None:
    """Import modules that packages load lazily, which would otherwise happen in every call."""
    for name, later in FOLLOWING.items():
        for module in later.split() if name in sys.modules else ():
            with contextlib.suppress(ImportError):  # another version may have it elsewhere
                importlib.import_module(module)


def _be_first_to_go() -> None:
    """Let the kernel kill this process, not the trainer, when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return


def _have_descriptors() -> None:
    """Raise the limit on descriptors as far as possible: a session takes four, and the usual limit (1024) is too low.
    Calls get a lower one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = child.CLOSE_TO if hard == resource.RLIM_INFINITY else min(hard, child.CLOSE_TO)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _leave_processes_to_others() -> None:
    """Limit the number of threads, which the whole machine shares and whose kernel memory counts for no process. The
    kernel counts them by user, so the threads that already run (of all users, since only that is known) are added to
    the limit."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].partition("/")[2])
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = running + MOST_TASKS + TASKS_KEPT
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _take_control() -> socket.socket:
    """Move the socket to the trainer away from descriptors 0 to 2, which now lead nowhere."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whatever the trainer does with its own
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    nowhere = os.open("/dev/null", os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return control


def address_space() -> int:
    """Bytes of address space in use, to a megabyte, measured by trying limits, since there is no /proc. Runs in a
    child."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 46
    while high - low > 1 << 20:
        middle = (low + high) // 2
        try:
            resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
            mmap.mmap(-1, 4096).close()
            high = middle
        except (OSError, MemoryError, ValueError):
            low = middle
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return high


def _address_space_in_child() -> int:
    read, write = os.pipe()
    made = os.fork()
    if not made:
        os.write(write, address_space().to_bytes(8, "little"))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        size = answer.read(8)
    os.waitpid(made, 0)
    if len(size) < 8:
        raise OSError("how much memory the interpreter takes could not be measured")
    return int.from_bytes(size, "little")
