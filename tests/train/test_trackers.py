import pytest

from arpo.errors import ConfigError
from arpo.train.trackers import Trackers, check_trackers


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_the_numbers_alone(tmp_path):
    with Trackers(tmp_path) as trackers:
        trackers.log({"reward/leaves": 0.5, "note": "text", "missing": None, "flag": True, "entropy_at/first/03": 1.0}, 1)
        trackers.log({"reward/leaves": 0.75}, 2)
    assert scalars(tmp_path / "tensorboard") == {"reward/leaves": [(1, 0.5), (2, 0.75)]}


def test_a_resumed_run_hides_the_steps_that_it_does_again(tmp_path):
    with Trackers(tmp_path) as trackers:
        for step in range(1, 5):
            trackers.log({"a": float(step)}, step)
    with Trackers(tmp_path, resumed_after=2) as trackers:
        trackers.log({"a": 30.0}, 3)
    assert scalars(tmp_path / "tensorboard")["a"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_unknown_and_missing_trackers_are_named_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        check_trackers(["wand"])
    with pytest.raises(ConfigError, match="pip install"):
        Trackers(tmp_path / "run", ["mlflow"] if not _installed("mlflow") else ["trackio"])
    assert not (tmp_path / "run").exists()


def _installed(name):
    from importlib.util import find_spec

    return find_spec(name) is not None
