import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import arpo
from arpo.errors import ConfigError
from arpo.recipe.train import TrainConfig
from arpo.training import trackers as trackers_module
from arpo.training.trackers import KNOWN, Trackers, check_trackers


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_the_numbers_alone(tmp_path):
    with Trackers(tmp_path, tell=print) as trackers:
        trackers.log(
            {"reward/leaves": 0.5, "note": "text", "missing": None, "flag": True, "entropy_at/first/03": 1.0}, 1
        )
        trackers.log({"reward/leaves": 0.75}, 2)
    assert scalars(tmp_path / "tensorboard") == {"reward/leaves": [(1, 0.5), (2, 0.75)]}


def test_a_resumed_run_hides_the_steps_that_it_does_again(tmp_path):
    with Trackers(tmp_path, tell=print) as trackers:
        for step in range(1, 5):
            trackers.log({"a": float(step)}, step)
    with Trackers(tmp_path, resumed_after=2, tell=print) as trackers:
        trackers.log({"a": 30.0}, 3)
    assert scalars(tmp_path / "tensorboard")["a"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_unknown_and_missing_trackers_are_named_before_anything_starts(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        check_trackers(["wand"])
    for trackers, message in (
        (["wandb", "wandb"], "twice"),
        ({"trackio": {"tags": ["a"]}}, "trackio has no tags"),
        ({"tensorboard": {"project": "mine"}}, "tensorboard has no project"),
        ({"wandb": {"group": 3}}, "trackers.wandb.group: should be text"),
        ([{"use": "wandb"}], "options stand under a name"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig(trackers=trackers)
    monkeypatch.setattr("arpo.training.trackers.find_spec", lambda name: None)  # as where none is installed
    for name in KNOWN:
        with pytest.raises(ConfigError, match="pip install"):
            Trackers(tmp_path / "run", {name: {}}, tell=print)
    assert not (tmp_path / "run").exists()


class Failing:
    """A client whose server is there at first, and then is not."""

    def __init__(self, *_: object, resumed: bool) -> None:
        if resumed:
            raise ConnectionError("no key\nfor it")

    def log(self, _metrics: object, step: int) -> None:
        if step > 1:
            raise ConnectionError("the server of metrics")

    close = log


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr("arpo.training.trackers.find_spec", lambda name: name)


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(tmp_path, monkeypatch, installed):
    monkeypatch.setattr("arpo.training.trackers._Accelerates", Failing)
    told = []
    with Trackers(tmp_path, {"wandb": {}}, tell=told.append) as trackers:
        for step in range(1, 5):
            trackers.log({"a": float(step)}, step)
    assert told == ["the tracker wandb fails and gets nothing more: ConnectionError: the server of metrics"]
    assert scalars(tmp_path / "tensorboard")["a"] == [(step, float(step)) for step in range(1, 5)]
    with pytest.raises(ConfigError, match=r"^train\.trackers: the tracker 'wandb' cannot .*ConnectionError: no key\)"):
        Trackers(tmp_path, {"wandb": {}}, resumed_after=4, tell=told.append)


@pytest.mark.parametrize("answers", [True, False])
def test_nobody_waits_for_a_tracker_whose_server_does_not_answer(tmp_path, monkeypatch, installed, answers):
    """It gets what fits into its queue; where it answers at last, before the run's end waits in vain, it gets that."""
    answered, threads, got = threading.Event(), set(), []

    class Slow:
        def __init__(self, *_: object, resumed: bool) -> None:
            threads.add(threading.get_ident())

        def log(self, _metrics: object, step: int) -> None:
            threads.add(threading.get_ident())
            assert answered.wait(600)
            got.append(step)

        def close(self) -> None:
            got.append("closed")

    monkeypatch.setattr(trackers_module, "_Accelerates", Slow)
    monkeypatch.setattr(trackers_module, "MOST_WAITING", 5)
    monkeypatch.setattr(trackers_module, "CLOSING_S", 600.0 if answers else 0.1)
    told = []
    with Trackers(tmp_path, {"wandb": {}}, tell=told.append) as trackers:
        for step in range(1, 21):
            trackers.log({"a": float(step)}, step)
        assert got == []
        if answers:
            answered.set()
    dropped, *given_up = told
    assert "the tracker wandb is too slow: from step" in dropped and len(given_up) == (not answers)
    assert len(scalars(tmp_path / "tensorboard")["a"]) == 20
    if answers:
        assert got.pop() == "closed" and got[:5] == [1, 2, 3, 4, 5] and len(got) <= 6  # one was in the client's hands
        assert len(threads) == 1 and threads != {threading.get_ident()}
    else:
        assert "has not sent everything within 0.1 s" in given_up[0]
        answered.set()


RUN = """
import sys
from pathlib import Path
from arpo.training.trackers import Trackers

settings = {"seed": 3, "rollout": {"leaves": 8, "rule": {"rule": "paper"}}, "empty": {}, "none": None}
resumed_after = int(sys.argv[3]) if len(sys.argv) > 3 else None
options = {"project": "shop", "group": "rule-a"}
if sys.argv[2] != "trackio":
    options["tags"] = ["seed-1", "cpu"]
with Trackers(
    Path(sys.argv[1]), {sys.argv[2]: options}, settings=settings, resumed_after=resumed_after, tell=print
) as trackers:
    if resumed_after is None:
        trackers.log({"reward/leaves": 0.5, "entropy_at/first/00": 1.0}, 1)
    trackers.log({"reward/leaves": 0.75, "tokens/generated": 10}, 2)
"""


def tracked(name, run, *more, **environment):
    """What the tracker's own client leaves in a run's folder, without a network: it keeps its state in the process."""
    pytest.importorskip(name)
    run.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))}
    command = [sys.executable, "-c", RUN, str(run), name, *more]
    source = str(Path(arpo.__file__).parents[1])
    environment = {**kept, "PYTHONPATH": source, **environment}
    done = subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert scalars(run / "tensorboard")["reward/leaves"] == [(1, 0.5), (2, 0.75)]
    assert [path.name for path in run.parent.iterdir()] == [run.name]  # nothing beside the run


@pytest.mark.slow  # a client of some seconds
def test_wandb_keeps_a_run_offline(tmp_path):
    tracked("wandb", tmp_path / "mine", WANDB_MODE="offline")
    (written,) = (tmp_path / "mine" / "wandb").glob("offline-run-*/*.wandb")
    content = written.read_bytes()
    for word in (
        b"reward/leaves",
        b"0.75",
        b"tokens/generated",
        b"rollout.rule.rule",
        b"mine",
        b"shop",
        b"rule-a",
        b"seed-1",
    ):
        assert word in content
    assert b"entropy_at" not in content


@pytest.mark.slow
def test_mlflow_writes_into_the_runs_folder(tmp_path):
    tracked("mlflow", tmp_path / "mine")
    (metric,) = (tmp_path / "mine" / "mlruns").glob("*/*/metrics/reward/leaves")
    found = [line.split() for line in metric.read_text().splitlines()]  # time, value, step
    assert [(float(value), int(step)) for _, value, step in found] == [(0.5, 1), (0.75, 2)]
    kept = metric.parents[2]
    assert (kept / "params" / "rollout.rule.rule").read_text() == "paper"
    tags = {path.name: path.read_text() for path in (kept / "tags").iterdir()}
    assert tags["mlflow.runName"] == "mine" and tags["group"] == "rule-a" and tags["seed-1"] == tags["cpu"] == "true"
    assert "name: shop" in (kept.parent / "meta.yaml").read_text()


@pytest.mark.slow
def test_trackio_keeps_all_runs_in_its_store_and_goes_on_with_a_resumed_one(tmp_path):
    run, store = tmp_path / "mine", tmp_path / "mine" / "store"  # inside, so that nothing lies beside the run
    environment = {"TRACKIO_DIR": str(store), "HF_HUB_OFFLINE": "1"}
    tracked("trackio", run, **environment)
    tracked("trackio", run, "1", **environment)
    with sqlite3.connect(store / "shop.db") as database:
        logged = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        settings = database.execute("SELECT config FROM configs").fetchall()
    assert len({id for id, *_ in logged}) == 1
    assert [(name, step, json.loads(metrics)) for _, name, step, metrics in logged] == [
        ("mine", 1, {"reward/leaves": 0.5}),
        ("mine", 2, {"reward/leaves": 0.75, "tokens/generated": 10.0}),
        ("mine", 2, {"reward/leaves": 0.75, "tokens/generated": 10.0}),
    ]
    found = json.loads(settings[0][0])
    assert found["rollout.rule.rule"] == "paper" and found["_Group"] == "rule-a"
