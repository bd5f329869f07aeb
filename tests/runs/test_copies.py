"""`train.copy_to`: another machine goes on with the copy, whenever copying was cut off."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from arpo.cli.run_arguments import resumed_folder
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from arpo.recipe.train import TrainConfig
from arpo.runs import checkpoint
from arpo.runs.atomic import whole_folder
from arpo.runs.copies import RunCopy, fetch_run
from arpo.runs.folder import RunFolder
from arpo.training.pipeline import train
from tiny_project import TinyProject

S3 = all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask"))


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.skipif(not S3, reason="no s3fs, moto"))])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "memory":
        yield f"memory://{tmp_path.name}/runs"
    elif request.param == "file":
        yield f"file://{tmp_path}/there/runs"
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        import fsspec

        fsspec.config.set_conf_env(fsspec.config.conf)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("bucket")
        try:
            yield "s3://bucket/runs"
        finally:
            server.kill()
            fsspec.config.conf.pop("s3", None)


def write_step(run: Path, step: int, keep: int = 1) -> None:
    """What a step leaves: its records, a line of metrics and a checkpoint; the one before it goes."""
    (run / "events").mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text("name: mine\n")
    (run / "environment.json").write_text("[]")
    (run / "lock").write_text("held")
    (run / "events" / f"step-{step:06d}.frames").write_bytes(os.urandom(100))
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": step}) + "\n")
    with whole_folder(checkpoint.path_of(run / "checkpoints", step)) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "optimizer.safetensors").write_bytes(os.urandom(50))
        (folder / "state.json").write_text(json.dumps(asdict(checkpoint.TrainState(step=step))))
    for old in sorted((run / "checkpoints").iterdir())[:-keep]:
        for path in sorted(old.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        old.rmdir()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fetched_copy_is_the_run(url: str, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    copy = RunCopy(run, url)
    for step in (1, 2, 3):
        write_step(run, step)
        copy.push()
        there = fetch_run(copy.url, tmp_path / f"other-{step}")
        assert content(there) == {name: value for name, value in content(run).items() if name != "lock"}
    assert fetch_run(copy.url, tmp_path / "other-3") == there, "one that is there stays"
    with whole_folder(checkpoint.path_of(run / "checkpoints", 3)) as folder:  # again, after its validation
        (folder / "state.json").write_text('{"step":3}  ')
    copy.push()
    assert content(fetch_run(copy.url, tmp_path / "other-4")).keys() == content(run).keys() - {"lock"}


def test_wherever_copying_is_cut_off_the_copy_has_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the step before or of this one, with the records up to it; copying once more makes it complete."""
    for broken_after in range(12):
        run, url = tmp_path / f"{broken_after}" / "mine", f"memory://{tmp_path.name}/{broken_after}"
        copy, left = RunCopy(run, url), broken_after
        write_step(run, 1, keep=2)
        copy.push()
        write_step(run, 2, keep=2)
        acts: dict[str, Any] = {name: getattr(copy.files, name) for name in ("put_file", "rm_file")}

        def breaks(name: str, *arguments: Any, acts: dict[str, Any] = acts) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("cut off")
            acts[name](*arguments)

        with monkeypatch.context() as patch:
            for name in acts:
                patch.setattr(copy.files, name, lambda *arguments, name=name: breaks(name, *arguments))
            with suppress(ConnectionError):
                copy.push()
        there = fetch_run(copy.url, tmp_path / f"{broken_after}" / "cut")
        saved, _ = checkpoint.newest(there / "checkpoints")
        assert saved is not None and saved.state.step in (1, 2)
        assert (there / "events" / f"step-{saved.state.step:06d}.frames").exists()
        copy.push()
        assert content(fetch_run(copy.url, tmp_path / f"{broken_after}" / "whole")).keys() == content(run).keys() - {
            "lock"
        }


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.copy_to"):
        RunCopy(tmp_path, "nosuch://bucket")
    with pytest.raises(ConfigError, match="there is no copy of a run"):
        fetch_run(f"memory://{tmp_path.name}/nothing", tmp_path)
    import fsspec

    fsspec.filesystem("memory").pipe({"/evil/run/recipe.yaml": b"", "/evil/run/../../../out": b"x"})
    with pytest.raises(ConfigError, match="outside of the run"):
        fetch_run("memory://evil/run", tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "d/" * 3000 + "x", "recipe.yaml/x", "\ud800", "."])
def test_what_cannot_be_a_file_of_a_run_is_named_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    import fsspec

    storage = fsspec.filesystem("memory")
    storage.pipe(f"/{tmp_path.name}/run/recipe.yaml", b"name: x")
    storage.store[f"/{tmp_path.name}/run/{name}"] = storage.store[f"/{tmp_path.name}/run/recipe.yaml"]
    with pytest.raises(ConfigError, match="--resume"):
        fetch_run(f"memory://{tmp_path.name}/run", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "device", "link to itself", "giant"])
def test_a_folder_that_holds_what_is_no_file_or_too_much_is_named(kind: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "recipe.yaml").write_text("name: x")
    odd = there / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "giant":
        odd.touch()
        os.truncate(odd, 1 << 42)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else "odd")
    with pytest.raises(ConfigError, match="MB of room" if kind == "giant" else "odd"):
        fetch_run(f"file://{there}", tmp_path / "here")
    assert not list((tmp_path / "here").glob("*"))


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"ftp://127.0.0.1:{nobody.getsockname()[1]}/runs"  # a client that connects at once
        for act, key in (
            (lambda: fetch_run(f"{url}/x", tmp_path), "--resume"),
            (lambda: RunCopy(tmp_path, url), "copy_to"),
        ):
            with pytest.raises(ConfigError, match=f"{key}.*refused"):
                act()
    with pytest.raises(ConfigError, match="copy_to"):
        TrainConfig(copy_to="s3://KEY:SECRET@bucket/runs")


def test_a_run_that_ended_early_goes_on_with_its_copy(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(step: int, metrics: Mapping[str, float]) -> None:
        raise RuntimeError("the machine is taken away")

    monkeypatch.chdir(tmp_path)
    changes = ["cold_start=null", f"train.copy_to=file://{tmp_path}/there", "evaluation.limit=1"]
    with pytest.raises(RuntimeError, match="taken away"):
        train(
            load_recipe(tiny_project.recipe, changes),
            out=tmp_path / "here" / "mine",
            callbacks=[ends],
            console=Console(quiet=True),
        )
    there = resumed_folder(f"file://{tmp_path}/there/mine")
    assert there == Path("runs") / "mine" and not (there / "report.md").exists()
    train(there, resume=True, console=Console(quiet=True))
    assert [line["step"] for line in RunFolder(there).metrics()] == [1, 2]
    assert content(there).keys() - content(tmp_path / "there" / "mine").keys() <= {"lock"}
