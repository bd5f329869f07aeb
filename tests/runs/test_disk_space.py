"""Disks that are full, or get full: said before the first step, and later without harm to what is there."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from arpo.runs.disk_space import check_space, is_full, space_for
from arpo.runs.folder import RunFolder
from tiny_models import tiny_model
from tiny_project import TinyProject


def test_room_is_made_for_the_checkpoints_that_are_kept(tiny_project: TinyProject, tmp_path: Path) -> None:
    model = tiny_model("llama")
    weights = sum(p.nbytes for p in model.parameters())
    run = load_recipe(tiny_project.recipe, ["train.keep_last=3"])
    space = space_for(run, model, tmp_path, 10)
    assert space.checkpoints == 3 * weights * 4, (
        "weights and two numbers of the optimizer; three kept and one being written"
    )
    with_best = space_for(
        load_recipe(tiny_project.recipe, ["train.keep_last=3", "train.eval_every=1"]), model, tmp_path, 10
    )
    assert with_best.checkpoints == 3 * weights * 5
    assert space.all_records == 10 * space.step_records
    assert check_space(space, tmp_path) is None
    with pytest.raises(ConfigError, match=r"too full: 1 kB are free; checkpoints need .*--out.*train\.keep_last"):
        check_space(replace(space, free=1000), tmp_path)
    tight = replace(space, free=space.checkpoints + 2 * space.step_records)
    assert "may fill up" in (check_space(tight, tmp_path) or "")


def test_earlier_checkpoints_count_as_room(tiny_project: TinyProject, tmp_path: Path) -> None:
    run, model = load_recipe(tiny_project.recipe), tiny_model("llama")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights").write_bytes(b"x" * 5_000_000)
    with_them = space_for(run, model, tmp_path, 1).free
    (tmp_path / "checkpoints" / "weights").rename(tmp_path / "weights")
    assert with_them - space_for(run, model, tmp_path, 1).free > 4_000_000


def test_a_full_disk_is_known_by_what_libraries_say() -> None:
    def wrapped(cause: Exception) -> Exception:
        try:
            raise ValueError("while saving") from cause
        except ValueError as error:
            return error

    assert is_full(wrapped(OSError(errno.ENOSPC, "x"))) and is_full(
        wrapped(Exception("I/O error: No space left on device"))
    )
    assert not is_full(wrapped(OSError(errno.EACCES, "x")))


def test_an_append_that_does_not_fit_leaves_whole_lines(tmp_path: Path) -> None:
    """Under a limit on the length of files, which cuts a write short as a full disk does."""
    script = (
        "import resource, sys; from arpo.runs.folder import RunFolder\n"
        "run = RunFolder.create(sys.argv[1], 'name: x\\n', {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "[run.append_metrics(step, {'text': 'x' * 300}) for step in range(9)]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], env=_environment(), capture_output=True, text=True
    )
    assert "File too large" in done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text().endswith("}\n")
    assert [line["step"] for line in RunFolder(tmp_path / "run").metrics()] == [0, 1, 2]


SMALL_DISK = """
import json, os, sys
from pathlib import Path
from arpo.display.terminal import Console
from arpo.core.score import Score
from arpo.errors import ArpoError
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.training.pipeline import train
from arpo.runs.folder import RunFolder

recipe, disk = sys.argv[1], Path(sys.argv[2])

def fill(spare):
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "rubbish").write_bytes(b"x" * max(0, free - spare))

class Filling:
    def __init__(self, when):
        self.left = when
    async def __call__(self, task, said):
        self.left -= 1
        if self.left == 0:
            fill(0)
        share = len(said.turns[0].text) % 7 / 7
        return Score(reward=share, accuracy=share)

def go(out, reward, resume=False):
    plan = ["evaluation={limit: 2, greedy_limit: 0}", "train.steps=4", "train.keep_last=1"]
    try:
        run = load_recipe(recipe, plan).model_copy(update={"reward": reward})
        train(run, out=disk / out, resume=resume, console=Console(quiet=True))
        said = ""
    except ArpoError as error:
        said = str(error)
    saved, passed = checkpoint.newest(disk / out / "checkpoints")
    folder = RunFolder(disk / out)
    trees = [len(list(folder.trees(step))) for step in folder.event_steps()]
    return [said, saved.state.step if saved else 0, passed, folder.state(), len(folder.metrics()), trees]

fill(100_000)
found = [go("full", Filling(10**9))]
(disk / "rubbish").unlink()
found.append(go("fills", Filling(2 + 2 * 18 + 5)))
(disk / "rubbish").unlink()
found.append(go("fills", Filling(10**9), resume=True))
print(json.dumps(found))
"""


@pytest.mark.usefixtures("tiny_run")  # its cold start
@pytest.mark.slow
def test_a_disk_that_fills_ends_the_run_with_its_last_checkpoint_whole(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """On a real file system of 24 MB, mounted where only this test sees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=24m none "$0" && exec "$@"'
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system in a namespace of his own")
    arguments = [*mount, sys.executable, "-c", SMALL_DISK, str(tiny_project.recipe), str(disk)]
    done = subprocess.run(arguments, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full, fills, resumed = json.loads(done.stdout.splitlines()[-1])
    assert "the disk is too full" in full[0] and full[1] == full[4] == 0
    said, saved, passed, state, steps, trees = fills
    assert "the disk is full" in said and f"the checkpoint of step {saved} is whole" in said and "--resume" in said
    assert (
        1 <= saved <= steps <= 3
        and passed == []
        and state in ("failed", "cut off before its end")
        and len(trees) >= steps
    )
    assert resumed[0] == "" and resumed[1] == resumed[4] == 4 and resumed[3] == "finished"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"), "OMP_NUM_THREADS": "1"}
