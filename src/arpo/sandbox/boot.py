"""How an interpreter for the sandbox is started: its first lines, its flags and its environment.

The lines find this package alone, without the site packages; both the warm and the weak sandbox use them.
"""

import json
import os

from arpo.sandbox import view
from arpo.sandbox.setup import Setup

BOOT_PACKAGE = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])["path"]
package = types.ModuleType("arpo")
package.__path__ = [sys.argv[2]]
sys.modules["arpo"] = package
"""  # this folder alone is to be found as `arpo.sandbox`, wherever it lies
BOOT = (
    BOOT_PACKAGE
    + """
from arpo.sandbox import entry
from arpo.sandbox.setup import Setup
setup = Setup.read(json.loads(sys.argv[1]))
if sys.argv[3] == "inside":
    entry.inside(setup)
else:
    words = sys.orig_argv
    entry.outside(setup, [sys.executable, *words[1:-1], "inside"])
"""
)
# no user packages, no surprises on the path, no .pth files, no caches written
FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program gives the same text
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def outside(setup: Setup) -> list[str]:
    """The command line that starts the warm interpreter, from outside its isolation."""
    words = [view.interpreter(), *FLAGS, "-c", BOOT, json.dumps(setup.plain())]
    return [*words, os.path.dirname(view.own_folder()), "outside"]
