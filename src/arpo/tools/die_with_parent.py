"""Programs that end with us, also where nobody is left to end them: Linux kills a child with its parent, if the child asks for it.

Knows how a command is started. Refuses to know what it does. What such a program starts itself is its own affair.
"""

import sys
from collections.abc import Sequence

# Asked for in the child, before it becomes the program: 1 is PR_SET_PDEATHSIG, 9 SIGKILL. The parent may be gone by then.
_SCRIPT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def dies_with_parent(words: Sequence[str], parent: int) -> list[str]:
    """The command `words` such that its process is killed when the thread of the process `parent` that starts it has ended.

    Elsewhere than on Linux: `words` as they are; a server on stdio then goes when its input ends, if it is well made.
    """
    if sys.platform != "linux":
        return list(words)
    return [sys.executable, "-I", "-S", "-c", _SCRIPT, str(parent), *words]
