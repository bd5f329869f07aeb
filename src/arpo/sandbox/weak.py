"""A subprocess with rlimits and no isolation, for machines that allow nothing better and users who choose it.

The program can read and write the same files as its user, use the network, and signal other processes. Only its
environment, its limits and its folder are separate.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from arpo.sandbox import limits as limits_of
from arpo.sandbox import messages, program, view
from arpo.sandbox.boot import BOOT_PACKAGE, ENVIRONMENT, FLAGS
from arpo.sandbox.limits import Limits
from arpo.sandbox.places import Places
from arpo.sandbox.scratch import remove
from arpo.sandbox.verdict import Ran

_RUNNER = BOOT_PACKAGE + "from arpo.sandbox import weak\nweak.main()\n"


class WeakSandbox:
    """Starts a fresh interpreter for every call, which imports `imports` again."""

    level, landlocked = "weak", False

    def __init__(self, limits: Limits, imports: Sequence[str] = (), at_once: int = 4) -> None:
        self.limits, self.imports = limits, tuple(imports)
        self._places = Places(at_once)

    def close(self) -> None:
        """Do nothing: there is nothing between calls."""

    async def run(self, code: str, *, seconds: float, seed: int = 0) -> Ran:
        async with self._places.one():
            folder = tempfile.mkdtemp(prefix="arpo-weak-")
            try:
                return await self._run(code, min(seconds, self.limits.seconds), seed, folder)
            finally:
                remove(folder)

    async def _run(self, code: str, seconds: float, seed: int, folder: str) -> Ran:
        setup = {
            "path": view.import_path(),
            "limits": self.limits.plain(),
            "imports": self.imports,
            "seed": seed % 2**63,
        }
        words = [view.interpreter(), *FLAGS, "-c", _RUNNER, json.dumps(setup), os.path.dirname(view.own_folder())]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**ENVIRONMENT, "HOME": folder, "TMPDIR": folder},
            cwd=folder,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        late = False
        output = b""
        try:
            async with asyncio.timeout(seconds):
                with contextlib.suppress(ConnectionError):
                    process.stdin.write(code.encode("utf-8", "surrogatepass"))
                    process.stdin.write_eof()
                while len(output) <= self.limits.output_bytes and (part := await process.stdout.read(1 << 16)):
                    output += part
                if len(output) <= self.limits.output_bytes:
                    await process.wait()
        except TimeoutError:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return self._told(output, process.returncode or 0, late, seconds)

    def _told(self, output: bytes, code: int, late: bool, seconds: float) -> Ran:
        text = output[: self.limits.output_bytes].decode("utf-8", "replace").replace("\0", "\ufffd").rstrip("\n")
        ending, line = "ok" if code == program.FINE else "error", ""
        if late:
            ending, line = "time", messages.out_of_time(seconds)
        elif len(output) > self.limits.output_bytes:
            ending, line = "error", messages.too_much_output(self.limits.output_bytes)
        elif code in (program.OUT_OF_CPU, -signal.SIGXCPU):
            ending, line = "cpu", messages.out_of_cpu(self.limits.cpu_seconds)
        elif code < 0:
            line = messages.killed_by(-code)
        return Ran(text="\n".join(part for part in (text, line) if part), ending=ending)


def main() -> None:
    """The main function of the fresh interpreter. It reads its program from standard input."""
    setup: dict[str, Any] = json.loads(sys.argv[1])
    limits = Limits.read(setup["limits"])
    code = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    for name in setup["imports"]:
        __import__(name)
    program.listen()
    used = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.suppress(OSError, ValueError):  # systems differ in what they let be limited
        limits_of.apply(limits, address_space=1 << 30)
    with contextlib.suppress(OSError, ValueError):
        limits_of.grant_cpu(limits, used.ru_utime + used.ru_stime, hard=True)
    random.seed(setup["seed"])
    os._exit(program.run(code, {"__name__": "__main__"}, limits))
