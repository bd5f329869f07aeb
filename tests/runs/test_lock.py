"""Two processes never write one run: by whatever path they come to it, and from whatever host."""

import fcntl
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from arpo.errors import ArpoError, ConfigError
from arpo.runs import lock
from arpo.runs.folder import RunFolder, move_aside
from arpo.runs.lock import Lock, is_held

ELSEWHERE = "pid 1 on another-host\n"


def test_a_run_is_the_same_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with RunFolder.create(tmp_path / "run", "name: x\n", {}):
        with pytest.raises(ConfigError, match=rf"pid {os.getpid()} on {socket.gethostname()}"):
            RunFolder.create(tmp_path / "link", "name: x\n", {}, resume=True)
        with pytest.raises(ConfigError, match="another process"):
            move_aside(tmp_path / "link")
        assert RunFolder(tmp_path / "link").is_live()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_what_a_silent_host_left_is_taken_over_after_a_while(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", list[str]()
    path.write_text(ELSEWHERE)
    os.utime(path, (0, 0))
    assert not is_held(path)
    taken = Lock.take(path, patience_s=0.2, tell=told.append)
    assert "another-host" in told[0] and path.read_text().strip() == taken.holder
    taken.release()
    assert not path.exists()


def test_a_host_that_shows_life_keeps_its_run(tmp_path: Path) -> None:
    path, ended = tmp_path / "lock", threading.Event()
    path.write_text(ELSEWHERE)
    assert is_held(path)

    def live() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    (living := threading.Thread(target=live)).start()
    try:
        with pytest.raises(ConfigError, match="another-host"):
            Lock.take(path, patience_s=5.0)
    finally:
        ended.set()
        living.join()
    assert path.read_text() == ELSEWHERE


@pytest.mark.parametrize("killed", [True, False])
def test_a_file_system_without_locks_is_watched_for_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lock, "BEAT_S", 60.0 if killed else 0.05)
    first = Lock.take(tmp_path / "lock")
    if killed:  # this process stands for the next one on its host
        Lock.take(tmp_path / "lock", patience_s=0.1).release()
    else:
        with pytest.raises(ConfigError, match="another process writes this run"):
            Lock.take(tmp_path / "lock", patience_s=5.0)
    first.release()


def test_who_was_taken_over_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    run = RunFolder.create(tmp_path / "run", "name: x\n", {})
    run.append_metrics(1, {})
    (tmp_path / "run" / "lock").write_text(ELSEWHERE)
    patience = time.monotonic() + 120
    with pytest.raises(ArpoError, match="taken over by pid 1 on another-host"):
        while time.monotonic() < patience:
            run.append_metrics(2, {})
            time.sleep(0.02)
    with pytest.raises(ArpoError, match="taken over"):
        run.sync()
    run.close()
    assert (tmp_path / "run" / "lock").read_text() == ELSEWHERE


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
