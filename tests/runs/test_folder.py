"""A run folder is written by one process, read by any, and can be cut back to a checkpoint."""

import json
import math
import os
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest

from arpo.core import Expansion, Never, Prompt, RolloutTree, StepStats
from arpo.core.record import TreeRecord, encode
from arpo.errors import ConfigError, FormatError
from arpo.files import write_atomic
from arpo.runs.environment import describe_environment
from arpo.runs.folder import RunFolder, move_aside

RECIPE = "name: x\n"


def tree(name):
    """The record of a tree that has not begun to grow."""
    bare = RolloutTree(name, 1, Prompt(tokens=array("i", [1, 2, 3])))
    expansion = Expansion(bare, leaves=2, roots=2, rule=Never(), head=4, vocab_size=9, stats=StepStats(step=1), seed=0)
    return TreeRecord.from_expansion(expansion)


def names(records):
    return [record.tree.task for record in records]


def test_what_is_written_is_read_at_once(tmp_path):
    with RunFolder.create(tmp_path / "run", RECIPE, {"seed": 1}) as run:
        run.append_metrics(
            1, {"a": 0.5, "bad": math.nan, "worse": -math.inf, "numpy": np.float32(2), "many": np.arange(2)}
        )
        run.append_tree(1, tree("a"))
        run.append_tree(1, tree("b"))
        run.note("watch out", step=1, level="warning")
        reader = RunFolder(tmp_path / "run")
        assert reader.metrics() == [{"step": 1, "a": 0.5, "bad": None, "worse": None, "numpy": 2.0, "many": [0, 1]}]
        assert names(reader.trees(1)) == ["a", "b"] and reader.event_steps() == [1]
        assert reader.notes()[0]["text"] == "watch out" and reader.recipe.read_text() == RECIPE
        assert reader.environment()[0]["seed"] == 1 and reader.is_live()
    assert not reader.is_live()


def test_readers_cannot_write(tmp_path):
    RunFolder.create(tmp_path / "run", RECIPE, {}).close()
    with pytest.raises(ValueError, match="for reading"):
        RunFolder(tmp_path / "run").append_metrics(1, {})
    with pytest.raises(ValueError, match="for reading"):
        RunFolder(tmp_path / "run").cut_back(1)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        RunFolder.create(tmp_path, RECIPE, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="no run to resume"):
        RunFolder.create(tmp_path, RECIPE, {}, resume=True)
    with pytest.raises(ConfigError, match="holds no run"):
        RunFolder(tmp_path)


def test_a_folder_with_a_recipe_of_its_user_is_no_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "tasks.jsonl").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"no run to resume.*environment\.json.*arpo train .*recipe\.yaml"):
        RunFolder.create(tmp_path, RECIPE, {}, resume=True)
    with pytest.raises(ConfigError, match="not empty"):
        RunFolder.create(tmp_path, RECIPE, {})
    with pytest.raises(ConfigError, match="no run to move aside"):
        move_aside(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_start_that_was_killed_before_its_recipe_was_written_is_no_run(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, RECIPE, {}).close()
    for name in ("recipe.yaml", "summary.json"):
        (path / name).unlink()
    for name in ("events", "checkpoints", "evaluation"):
        (path / name).rmdir()
    RunFolder.create(path, RECIPE, {}).close()
    assert len(RunFolder(path).environment()) == 1


def test_two_processes_never_share_a_run(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, RECIPE, {}):
        with pytest.raises(ConfigError, match="another process writes this run") as error:
            RunFolder.create(path, RECIPE, {}, resume=True)
        assert str(os.getpid()) in str(error.value)
    RunFolder.create(path, RECIPE, {}, resume=True).close()


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    path = tmp_path / "run"
    script = (
        "import os, sys; from arpo.runs.folder import RunFolder\n"
        "run = RunFolder.create(sys.argv[1], 'name: x\\n', {}); run.append_metrics(1, {'a': 1}); os._exit(9)"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    subprocess.run(
        [sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": str(source)}, check=False
    )
    assert (path / "lock").exists() and not RunFolder(path).is_live()
    assert RunFolder(path).state() == "cut off before its end"
    with RunFolder.create(path, RECIPE, {}, resume=True) as run:
        assert run.metrics() == [{"step": 1, "a": 1}] and run.state() == "still going" and len(run.environment()) == 2
        run.write_summary(status="finished")
    assert RunFolder(path).state() == "finished"


def test_cutting_back_takes_out_what_came_later_and_keeps_it_aside(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, RECIPE, {}) as run:
        for step in range(1, 6):
            run.append_metrics(step, {"a": step})
            run.append_tree(step, tree(f"step {step}"))
            run.note(f"note {step}", step=step)
        for name in ("before", "validation-000002", "validation-000004"):
            (path / "evaluation" / name).mkdir()
    with RunFolder.create(path, "name: y\n", {}, resume=True) as run:
        run.goes_on_with("name: y\n")
        aside = run.cut_back(3)
        assert (
            [m["step"] for m in run.metrics()] == [1, 2, 3] and run.event_steps() == [1, 2, 3] and len(run.notes()) == 3
        )
        assert sorted(p.name for p in (aside / "events").iterdir()) == ["step-000004.frames", "step-000005.frames"]
        assert [p.name for p in (aside / "evaluation").iterdir()] == ["validation-000004"]
        assert sorted(p.stem for p in (path / "evaluation").iterdir()) == ["before", "validation-000002"]
        assert len((aside / "metrics.jsonl").read_text().splitlines()) == 5
        run.append_metrics(4, {"a": "again"})
        run.append_tree(4, tree("again"))
        assert run.metrics()[-1] == {"step": 4, "a": "again"} and names(run.trees(4)) == ["again"]
        assert run.cut_back(4) is None
        assert run.cut_back(0).name.startswith("002") and run.metrics() == []
    assert (path / "recipe.yaml").read_text() == RECIPE and (path / "recipe.resumed.yaml").read_text() == "name: y\n"


def test_a_half_written_last_line_is_no_line(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, RECIPE, {}) as run:
        run.append_metrics(1, {"a": 1})
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    assert [m["step"] for m in RunFolder(path).metrics()] == [1]
    with RunFolder.create(path, RECIPE, {}, resume=True) as run:
        run.append_metrics(2, {"a": 2})
        assert [m["a"] for m in run.metrics()] == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    RunFolder.create(tmp_path / "run", RECIPE, {}).close()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(FormatError, match=r"metrics\.jsonl, line 2"):
        RunFolder(tmp_path / "run").metrics()


def test_frames_cut_anywhere_give_the_whole_ones_before(tmp_path):
    with RunFolder.create(tmp_path / "run", RECIPE, {}) as run:
        for name in "abc":
            run.append_tree(1, tree(name))
    path, whole = run.events_path(1), run.events_path(1).read_bytes()
    ends = [len(encode(tree("a"))), len(encode(tree("a"))) + len(encode(tree("b"))), len(whole)]
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert names(run.trees(1)) == list("abc")[: sum(end <= length for end in ends)]
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(FormatError, match=r"step-000001\.frames: frame 0 at byte 0 is damaged"):
        list(run.trees(1))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_steps_that_are_sampled_at_once_stay_open_and_a_finished_one_is_made_safe(tmp_path, monkeypatch):
    safe = []
    monkeypatch.setattr(os, "fsync", lambda number: safe.append(os.readlink(f"/proc/self/fd/{number}")))
    with RunFolder.create(tmp_path / "run", RECIPE, {}) as run:
        safe.clear()
        for name in "ab":
            for step in range(1, 9):
                run.append_tree(step, tree(name))
        assert safe == [], "the disk was waited for at a tree"
        run.append_metrics(1, {})
        assert safe == [str(run.events_path(1))]
        run.append_tree(1, tree("late"))
        assert names(run.trees(1)) == ["a", "b", "late"] and names(run.trees(8)) == ["a", "b"]


def test_summary_keeps_other_keys(tmp_path):
    with RunFolder.create(tmp_path / "run", RECIPE, {}) as run:
        run.write_summary(a=1, b={"low": math.nan})
        run.write_summary(c=Path("x"))
        assert run.summary() == {"status": "going", "a": 1, "b": {"low": None}, "c": "x"}


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "x", b"old")
    with pytest.raises(TypeError):
        write_atomic(path, 5)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_environment_names_versions_but_no_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret")
    found = describe_environment(seed=7, command=["arpo", "train"], folder=tmp_path)
    assert found["seed"] == 7 and found["commit"] is None and found["versions"]["numpy"]
    assert "very-secret" not in json.dumps(found)


def test_an_earlier_run_is_moved_aside_but_never_one_that_is_being_written(tmp_path):
    path = tmp_path / "run"
    assert move_aside(path) is None
    for number in (1, 2):
        with RunFolder.create(path, RECIPE, {"seed": number}), pytest.raises(ConfigError, match="another process"):
            move_aside(path)
        assert move_aside(path) == tmp_path / f"run.{number}" and not path.exists()
    assert RunFolder(tmp_path / "run.2").environment()[0]["seed"] == 2
    (path / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no run"):
        move_aside(path)
