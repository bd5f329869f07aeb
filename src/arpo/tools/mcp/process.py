"""A program that ends with this process, also where this one is killed, and takes its children along, and whose lines
on stdout have an end.

Knows processes of Linux. On other systems a program is started as it is: a well-made server on stdio ends when its
input does, but its children may stay.
"""

import sys
from collections.abc import Sequence

MOST_BYTES = 4 << 20  # of one message: the SDK keeps all of it, and copies it for every piece that arrives

# Runs between us and the program, and adopts what the program leaves behind (PR_SET_CHILD_SUBREAPER is 36,
# PR_SET_PDEATHSIG 1). It ends when the program does, when it is told to, and when the thread that started it has ended.
_SCRIPT = """
import ctypes, os, signal, sys, threading

libc, above, most = ctypes.CDLL(None), int(sys.argv[1]), int(sys.argv[2])

def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0

def end(code):
    for known in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(known, signal.SIG_IGN)
    while True:  # the children of a child that ends become ours
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            if parent_of(pid) == os.getpid():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            passing.join(1)  # what it said last
            os._exit(code)

def pass_on():
    length = 0
    while piece := os.read(said, 1 << 16):
        length = length + len(piece) if b"\\n" not in piece else len(piece) - piece.rindex(b"\\n") - 1
        if length > most:
            sys.stderr.write(f"a message of more than {most >> 20} MiB\\n")
            sys.stderr.flush()
            return os.kill(os.getpid(), signal.SIGTERM)
        while piece:
            piece = piece[os.write(1, piece):]

libc.prctl(36, 1)
said, into = os.pipe()
program = os.fork()
if program == 0:
    libc.prctl(1, signal.SIGKILL)
    os.dup2(into, 1)
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.stderr.write(f"{sys.argv[3]}: {error.strerror}\\n")
        sys.stderr.flush()
        os._exit(127)
os.close(into)
passing = threading.Thread(target=pass_on, daemon=True)
passing.start()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: end(1))
libc.prctl(1, signal.SIGTERM)
if os.getppid() != above:
    end(1)
os.close(0)
while True:
    pid, status = os.wait()
    if pid == program:
        end(os.waitstatus_to_exitcode(status) & 0xFF)
"""


def dies_with_parent(words: Sequence[str], parent: int) -> list[str]:
    """The command `words`, run so that on Linux it and its children end when the thread of the process `parent` that
    starts it has ended; it also ends after a line of more than MOST_BYTES."""
    if sys.platform != "linux":
        return list(words)
    return [sys.executable, "-I", "-S", "-c", _SCRIPT, str(parent), str(MOST_BYTES), *words]
