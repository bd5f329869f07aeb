"""Commands that end late, say too much, or leave what cannot be unpacked again."""

import pytest

from arpo.environments.shell import ShellEnvironment
from arpo.tasks import Task
from arpo.tools import CallContext
from sandbox_levels import WORKING

TASK = Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",), setup={"files": {"a.txt": "well"}})
CONTEXT = CallContext(task=TASK, deadline_s=60, seed=0)


@pytest.mark.skipif(not WORKING, reason="no sandbox for a shell works on this machine")
async def test_what_a_command_did_counts_also_where_it_does_not_end() -> None:
    folder = ShellEnvironment(seconds=4.0)
    folder.reset(TASK)

    async def shell(command: str) -> str:
        return (await folder.shell(command, CONTEXT)).text  # type: ignore[no-any-return]

    assert await shell("echo x > b; echo said; sleep 99") == "said\n\n[exit status 124]"
    assert await shell("ls") == "a.txt\nb\n"
    assert len(await shell("yes")) < 8_100
    assert "would be larger than 32 MB" in await shell("truncate -s 31M holes; cat holes > /dev/null")
    assert "the folder is as it was" in await shell("kill -9 $PPID")
    assert await shell("cat a.txt") == "well"
