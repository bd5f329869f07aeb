"""Behind tools: sandboxed Python with a soak of 10,000 calls, and the cache with a million entries and 16 processes.

    arpo bench tools            # about six minutes, 1 GB on the disk
    arpo bench tools --quick    # small numbers, to see that it works: a minute

Each part is a script of its own (`arpo bench sandbox`, `arpo bench cache`), run in a process of its own so that neither measures
what the other left in memory. The last line joins their figures and goals.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _figures import Goal, finish

PARTS = ("sandbox", "cache")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    quick = parser.parse_args().quick
    figures: dict[str, Any] = {}
    goals: list[Goal] = []
    for part in PARTS:
        print(f"--- {part}", flush=True)
        found = measured(part, ["--quick"] if quick else [])
        figures[part] = found["figures"]
        goals += [Goal(**{**goal, "what": f"{part}: {goal['what']}"}) for goal in found["goals"]]
    print("--- together", flush=True)
    return finish("tools", figures, goals)


def measured(part: str, arguments: list[str]) -> dict[str, Any]:
    """What the script of `part` says on its last line; its other lines are shown as they come."""
    script = Path(__file__).with_name(f"{part}.py")
    with subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    if process.returncode:
        print(last, end="")
        raise SystemExit(process.returncode)
    found: dict[str, Any] = json.loads(last)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
