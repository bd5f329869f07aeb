"""What `cluster.ranks` says where it cannot be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arpo.cluster import connection
from arpo.cluster.config import ClusterConfig
from arpo.cluster.connection import Node, check_versions, connected
from arpo.cluster.ranks import RayRanks, learner_ranks
from arpo.errors import ConfigError
from arpo.models.loading import ModelConfig

HERE = Node("0a", "10.0.0.1", "here", cpus=2.0, gpus=0.0)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r"cluster\.ranks: this needs Ray \(got 2\).*\[cluster\]"),
        connected(ClusterConfig(ranks=2)),
    ):
        pass


def test_no_cluster_at_an_address_is_told_with_it() -> None:
    with (
        pytest.raises(ConfigError, match=r"cluster\.address: no Ray answers.*127\.0\.0\.1:1"),
        connected(ClusterConfig(ranks=2, address="127.0.0.1:1")),
    ):
        pass


def test_a_cluster_that_is_too_small_says_how_many_ranks_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("arpo.cluster.placement.nodes", lambda: [HERE, HERE])
    ranks = RayRanks(5, gpu=False, logs=tmp_path, tell=print)
    with pytest.raises(ConfigError, match=r"room for 4 ranks, each with a CPU \(got 5\)\. 4 at most"):
        ranks.place()
    with pytest.raises(ConfigError, match=r"room for 0 ranks, each with 1 GPU of one node \(got 1\)\. Add nodes"):
        RayRanks(1, gpu=True, logs=tmp_path, tell=print).place()


def test_nodes_with_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own: dict[str, Any] = connection.versions_of()(connection.PACKAGES)
    monkeypatch.setattr(connection, "on_nodes", lambda *_: {"0a": {**own, "torch": "1.0"}})
    with pytest.raises(ConfigError, match=rf"here \(10\.0\.0\.1\) has torch 1\.0 \(here {own['torch'][:3]}"):
        check_versions([HERE])
    monkeypatch.setattr(connection, "on_nodes", lambda *_: {"0a": "did not answer"})
    with pytest.raises(ConfigError, match="did not answer"):
        check_versions([HERE])


def test_under_torchrun_there_is_no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("arpo.cluster.ranks.torch_ranks", lambda make: nullcontext(SimpleNamespace()))
    with (
        pytest.raises(ConfigError, match="under torchrun the ranks are its processes"),
        learner_ranks(ClusterConfig(ranks=2), ModelConfig(source="x"), folder=tmp_path, tell=print),
    ):
        pass
