"""Two processes never write one run, by whatever path they come to it."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from arpo.errors import ConfigError
from arpo.runs.folder import RunFolder, move_aside
from arpo.runs.lock import Lock, is_held


def test_a_run_is_the_same_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with RunFolder.create(tmp_path / "run", "name: x\n", {}):
        with pytest.raises(ConfigError, match=rf"pid {os.getpid()} on {socket.gethostname()}"):
            RunFolder.create(tmp_path / "link", "name: x\n", {}, resume=True)
        with pytest.raises(ConfigError, match="another process"):
            move_aside(tmp_path / "link")
        assert RunFolder(tmp_path / "link").is_live()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys, time; from pathlib import Path; from arpo.runs.lock import Lock\n"
        "lock = Lock.take(Path(sys.argv[1])); print('taken', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"taken\n"
        assert is_held(path)
        with pytest.raises(ConfigError, match=rf"pid {holder.pid} on {socket.gethostname()}"):
            Lock.take(path)
        holder.kill()
    assert path.exists() and not is_held(path)
    taken = Lock.take(path)
    assert path.read_text().startswith(f"pid {os.getpid()} on ")
    taken.release()
    assert not path.exists()


def test_a_reader_that_asks_at_the_wrong_moment_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    asking = threading.Thread(target=lambda: [is_held(path) for _ in range(200)])
    asking.start()
    Lock.take(path).release()
    asking.join()


def test_whoever_waits_takes_the_lock_once_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Lock.take(path)
    waiting = threading.Thread(target=lambda: Lock.take(path, timeout_s=-1).release())
    waiting.start()
    waiting.join(0.7)
    assert waiting.is_alive() and is_held(path)
    first.release()
    waiting.join()
    assert not path.exists()


def test_a_killed_start_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "lock").touch()
    (path / ".partial-recipe.yaml.abc").write_text("na")
    with RunFolder.create(path, "name: x\n", {}):
        assert not list(path.glob(".partial-*"))


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_a_mistake_with_a_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\)|not empty"):
        RunFolder.create(tmp_path / place, "name: x\n", {})
