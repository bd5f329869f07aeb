"""A folder with a shell, inside of the sandbox: files live from call to call and are copied with a branch.

A command runs in a sandbox of its own (`arpo.sandbox`), into which the folder is unpacked and from which it is packed
again: between calls an episode is an archive, so that a branch costs nothing.
"""

import base64
import io
import json
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from arpo.core.tree import CallStatus
from arpo.environments import AgentTurn, Environment, Step, setup_of
from arpo.tasks import Task
from arpo.tools import CallContext, ToolResult
from arpo.tools.function import tool
from arpo.tools.sandboxed import Sandboxed

# It cannot kill the command, which has another process number: what still runs ends with the call.
RUNNER = """
import base64, errno, io, json, os, select, subprocess, tarfile, time
given = json.loads({given!r})
files = tarfile.open(fileobj=io.BytesIO(base64.b64decode(given["files"])))
files.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11 has it from 3.11.4 on
files.extractall(".")
end = time.monotonic() + given["seconds"]
ran = subprocess.Popen(["/bin/bash", "-c", given["command"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
shown, said = b"", ran.stdout.fileno()
while (left := end - time.monotonic()) > 0 and select.select([said], [], [], left)[0]:
    if not (piece := os.read(said, 1 << 16)):
        break
    shown += piece[:max(0, 4 * given["output_chars"] - len(shown))]
try:
    code = ran.wait(max(0.0, end - time.monotonic()))
except subprocess.TimeoutExpired:
    code = 124
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    archive.add(".", filter=lambda entry: entry if entry.isfile() or entry.isdir() else None)
    if sum(entry.size for entry in archive.getmembers()) > given["most_bytes"]:  # with holes, they take less room here
        raise OSError(errno.EFBIG, "all files together")
shown = shown.decode("utf-8", "replace")[:given["output_chars"]]
print(json.dumps([shown, code, base64.b64encode(packed.getvalue()).decode()]), flush=True)
os._exit(0)
"""
FILE_MB = 32
SPARE_S = 5.0  # to unpack and pack the folder


@lru_cache(maxsize=4)
def _sandbox(seconds: float, memory_mb: int, max_kb: int) -> Sandboxed:
    from arpo.sandbox.limits import Limits

    limits = Limits(
        processes=32,
        seconds=seconds + SPARE_S,
        cpu_seconds=seconds + SPARE_S,
        memory_mb=memory_mb,
        file_mb=FILE_MB,
        output_bytes=max_kb * 2048,
    )
    return Sandboxed(limits=limits)


class ShellEnvironment(Environment):
    """`files` (text by path) lie in the folder at the start, and those of a task's `setup`: `{files: {...}, check:
    "test -f a.txt"}`.

    An episode ends with the first turn without a call. It is worth 1 where the command `check` then succeeds, or, in a
    task without `check`, where the answer is one of the task's. All files together may pack to `max_kb`.
    """

    name = "folder"

    def __init__(
        self,
        files: Mapping[str, str] | None = None,
        seconds: float = 5.0,
        memory_mb: int = 512,
        output_chars: int = 8000,
        max_kb: int = 512,
    ) -> None:
        self.files, self.seconds, self.output_chars = dict(files or {}), seconds, output_chars
        self.limits = (seconds, memory_mb, max_kb)
        _sandbox(*self.limits)  # refused now where this machine has none

    def reset(self, task: Task) -> None:
        self.task = task
        self.setup: Mapping[str, Any] = setup_of(task)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path, text in {**self.files, **self.setup.get("files", {})}.items():
                entry, content = tarfile.TarInfo(path), text.encode()
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
        self.archive = base64.b64encode(packed.getvalue()).decode()

    @tool
    async def shell(self, command: str, context: CallContext) -> ToolResult:
        """Runs a command with bash in your folder, and shows what it prints.

        Args:
            command: one or several lines of bash
        """
        text, code, status = await self._run(command, context.seed)
        if status is not CallStatus.OK or code is None:
            return ToolResult(text=text, status=status)
        return ToolResult(text=text if code == 0 else f"{text}\n[exit status {code}]".strip())

    async def _run(self, command: str, seed: int) -> tuple[str, int | None, CallStatus]:
        limits = {"seconds": self.seconds, "output_chars": self.output_chars, "most_bytes": FILE_MB * 9 * 2**20 // 10}
        given = json.dumps({"files": self.archive, "command": command, **limits})
        ran = await _sandbox(*self.limits).run(RUNNER.format(given=given), seconds=self.seconds + SPARE_S, seed=seed)
        try:
            text, code, archive = json.loads(ran.text)
            with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive))):
                pass
        except (ValueError, TypeError, tarfile.TarError):  # killed, or its files are too large: they are as before
            status = ran.status if ran.status is not CallStatus.OK else CallStatus.ERROR
            return f"{ran.text[-500:]}\n(the folder is as it was before this command)", None, status
        self.archive = archive
        return str(text), int(code), CallStatus.OK

    async def step(self, turn: AgentTurn) -> Step:
        if turn.calls:
            return Step()
        if "check" in self.setup:
            _, code, _ = await self._run(self.setup["check"], 0)
            return Step(done=True, reward=float(code == 0))
        return Step(done=True, reward=float(turn.said in self.task.answers))
