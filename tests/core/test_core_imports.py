"""The core needs nothing beyond the standard library."""

import subprocess
import sys
from pathlib import Path

import arpo

PROBE = """
import sys
before = set(sys.modules)
import arpo.core, arpo.core.record, arpo.core.credit, arpo.core.window
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names - {"arpo"}))
print(*sorted(name for name in sys.modules if name.startswith("arpo.") and not name.startswith("arpo.core")))
"""


def test_core_imports_nothing_outside_the_standard_library():
    source = Path(arpo.__file__).resolve().parents[1]
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{PROBE}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.splitlines() == ["", "arpo.errors arpo.foreign"]
