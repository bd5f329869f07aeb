"""Whole runs: how they end, go on, and what they share with other runs."""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arpo.assembly.components import build_components
from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.core.tree import RolloutTree
from arpo.display.terminal import Console
from arpo.engines import SamplingParams, Weights
from arpo.engines.local import LocalEngine
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.errors import ArpoError, CheckpointError, ConfigError, EngineError, GateError
from arpo.evaluation.manifest import read_manifest
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.runs.shutdown import is_stopping, run_to_end
from arpo.sft.cache import SFTCache
from arpo.tasks import Task
from arpo.training.pipeline import train
from arpo.training.preflight import prepare
from by_timing import BY_TIMING
from tiny_project import TinyProject, question, sketch_plots, tiny_llama

QUIET = ("evaluation={limit: 4, greedy_limit: 2}", "train.trackers=[]")
EXACT = (
    *("evaluation={limit: 2, greedy_limit: 1}", "train.trackers=[]", "engine.deterministic=true"),
    *("train.steps=4", "rollout.leaves=3", "rollout.roots=2", "train.tasks_per_step=2"),
)  # small: the deterministic engine computes every turn by itself


def run(
    project: TinyProject,
    out: Path,
    *overrides: str,
    resume: bool = False,
    accept: Sequence[str] = (),
    **changes: Any,
) -> RunFolder:
    recipe = load_recipe(project.recipe, [*QUIET, *overrides]).model_copy(update=changes)
    train(recipe, out=out, resume=resume, accept=accept, console=Console(quiet=True))
    return RunFolder(out)


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    """Metrics apart from seconds."""
    clock = BY_TIMING
    return [{key: value for key, value in line.items() if not key.startswith(clock)} for line in folder.metrics()]


def texts(folder: RunFolder) -> list[str]:
    return [note["text"] for note in folder.notes()]


class Interrupting:
    """A reward by length that sends Ctrl-C when it has scored `after` leaves."""

    def __init__(self, after: int) -> None:
        self.left = after

    async def __call__(self, _task: Task, said: Transcript) -> Score:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        share = len(said.turns[0].text) % 7 / 7
        return Score(reward=share, accuracy=share)


NEVER = 10**9


# --- resumption


@pytest.mark.parametrize(
    "overrides",
    [
        ("rollout.rule=paper",),
        pytest.param(
            ("model.lora={rank: 4, dropout: 0.2}", "optim.lr=1e-2", "cold_start.steps=10"), marks=pytest.mark.slow
        ),
        pytest.param(
            (
                "loss.kl_coefficient={coefficient: 0.1, estimator: reverse, final: 0}",
                "train.updates_per_step=2",
                "optim={lr: 1e-2, schedule: linear, warmup: 0.3}",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (
                "rollout.rule={rule: threshold, window: 9}",
                "train.dynamic_sampling=3",
                "rollout.leaves=4",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (
                *("rollout.rule={rule: spread, nearest: 1}", "rollout.leftover=tips"),
                "rollout.roots={plan: pass_rate, prior: 0.8}",
                "data.train.limit=5",
                "rollout.leaves=4",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(("train.eval_every=1", "train.eval_limit=3"), marks=pytest.mark.slow),
    ],
    ids=["full", "lora", "kl", "window", "outcomes", "validation"],
)
def test_a_resumed_run_is_the_undisturbed_one(
    tiny_project: TinyProject, tmp_path: Path, overrides: Sequence[str]
) -> None:
    """Interrupted by Ctrl-C in its third step, in a deterministic engine: from there on, all is equal to the last
    digit."""
    plan = [*EXACT, *overrides]
    whole = run(tiny_project, tmp_path / "whole", *plan, reward=Interrupting(NEVER))
    scored = sum(
        line["leaves/scored"] for line in whole.metrics()[:2]
    )  # the evaluation before comes from the cache now
    validated = 6 if "train.eval_every=1" in overrides else 0
    with pytest.raises(KeyboardInterrupt):
        run(tiny_project, tmp_path / "cut", *plan, reward=Interrupting(int(scored) + validated + 2))
    halfway = RunFolder(tmp_path / "cut")
    saved, _ = checkpoint.newest(tmp_path / "cut" / "checkpoints")
    assert saved is not None and saved.state.step == 2 and halfway.summary()["status"] == "interrupted"
    again = run(tiny_project, tmp_path / "cut", *plan, reward=Interrupting(NEVER), resume=True)
    assert timeless(again) == timeless(whole)
    assert again.summary()["status"] == "finished" and again.summary()["steps"] == 4
    for step in range(1, 5):
        assert [sampled(record.tree) for record in again.trees(step)] == [
            sampled(record.tree) for record in whole.trees(step)
        ]
    for key in ("accuracy_after", "greedy_after", "accuracy_before", "tokens_trained", "tool_calls", "model_step"):
        assert again.summary()[key] == whole.summary()[key], key
    one, other = (checkpoint.newest(folder.path / "checkpoints")[0] for folder in (whole, again))
    assert one is not None and other is not None and replace(one.state, seconds=0) == replace(other.state, seconds=0)
    weights = _tensors(other.model)
    assert all(torch.equal(value, weights[name]) for name, value in _tensors(one.model).items())


def sampled(tree: RolloutTree) -> dict[Any, Any]:
    """All but how long tools took."""
    return {place: (turn.tokens, turn.logprobs, turn.entropies, turn.versions) for place, turn in tree.turns.items()}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def test_a_truncated_checkpoint_is_passed_over_and_its_step_done_again(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    whole = run(tiny_project, tmp_path / "run", *EXACT, "train.steps=3", "train.keep_last=3")
    before = timeless(whole)
    last = tmp_path / "run" / "checkpoints" / "step-000003" / "model" / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    whole.path.joinpath("summary.json").write_text(json.dumps({**whole.summary(), "status": "going"}))
    again = run(tiny_project, tmp_path / "run", *EXACT, "train.steps=3", "train.keep_last=3", resume=True)
    assert any("step-000003" in text and "bytes instead of" in text for text in texts(again))
    assert any("done again from the records" in text and "step 3" in text for text in texts(again))
    assert timeless(again) == before and not (tmp_path / "run" / "cut").exists()
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[1] == []


def test_resuming_a_finished_run_changes_nothing(tiny_run: Path, tiny_project: TinyProject, tmp_path: Path) -> None:
    folder, own = tmp_path / "run", tmp_path / "own"
    shutil.copytree(tiny_run, folder)
    run(tiny_project, own, "train.steps=1", reward=Interrupting(NEVER))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    train(load_recipe(folder), out=folder, resume=True, console=Console(quiet=True))
    run(
        tiny_project, own, "train.steps=1", reward=Interrupting(NEVER), resume=True
    )  # with an object that no recipe can name
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_can_be_made_longer(tiny_run: Path, tiny_project: TinyProject, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    first = RunFolder(folder).metrics()
    longer = load_recipe(folder, ["train.steps=3"])
    train(longer, out=folder, resume=True, console=Console(quiet=True))
    again = RunFolder(folder)
    assert again.metrics()[:2] == first and again.summary()["steps"] == again.summary()["steps_planned"] == 3
    assert again.summary()["accuracy_before"] == RunFolder(tiny_run).summary()["accuracy_before"]


def test_a_run_goes_on_with_what_it_had_or_with_what_is_accepted(own_project: TinyProject, tmp_path: Path) -> None:
    """Another base model under the adapters: refused before anything is written, and recorded where it is accepted."""
    folder, lora = tmp_path / "run", ("model.lora={rank: 2}", "cold_start.steps=2", "evaluation.limit=2")
    run(own_project, folder, *lora, "train.steps=1")
    weights = own_project.model / "model.safetensors"
    tensors = {name: tensor * 1.01 for name, tensor in _tensors(own_project.model).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"model: content differs.*--accept model"):
        run(own_project, folder, *lora, "train.steps=2", resume=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    again = run(own_project, folder, *lora, "train.steps=2", resume=True, accept=["model"])
    assert again.summary()["steps"] == 2
    assert any("model: content differs" in text for text in texts(again))


LONG = ("train.steps=8", "train.minutes=60")


@pytest.fixture(scope="module")
def stopped(tiny_files: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an hour, stopped after some steps: `interrupted` copies it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as environment, pytest.raises(KeyboardInterrupt):
        environment.setenv("ARPO_CACHE", str(tiny_files.cache))
        sketch_plots(environment)
        run(tiny_files, folder, *LONG, reward=Interrupting(60))
    return folder


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.slow
def test_time_spent_before_counts_once(tiny_project: TinyProject, interrupted: Path, tmp_path: Path) -> None:
    (saved, _), seconds = checkpoint.newest(interrupted / "checkpoints"), RunFolder(interrupted).summary()["seconds"]
    assert saved is not None and 0 < saved.state.seconds <= seconds["training"] + 0.1

    def after(training: float) -> dict[str, Any]:
        """The summary of the run, resumed after so many seconds of training."""
        copied = tmp_path / f"copy-{training}"
        shutil.copytree(interrupted, copied)
        rewrite(copied / "summary.json", seconds={**seconds, "training": training})
        return run(tiny_project, copied, *LONG, reward=Interrupting(NEVER), resume=True).summary()

    late = after(3590.0)
    assert late["steps"] == saved.state.step and "overrun" in late["reason"] and late["status"] == "finished"
    assert late["seconds"]["training"] == pytest.approx(3590, abs=5)
    assert after(2000.0)["steps"] == 8, "counted twice, nothing would be left"


def test_the_time_of_a_killed_process_counts(tiny_project: TinyProject, interrupted: Path) -> None:
    """It wrote no seconds of its training: the checkpoint knows them."""
    saved, _ = checkpoint.newest(interrupted / "checkpoints")
    assert saved is not None
    rewrite(saved.path / "state.json", seconds=3590.0)
    rewrite(saved.path / "MANIFEST.json", **{"state.json": (saved.path / "state.json").stat().st_size})
    seconds = RunFolder(interrupted).summary()["seconds"]
    rewrite(interrupted / "summary.json", status="going", seconds={k: s for k, s in seconds.items() if k != "training"})
    assert (
        run(tiny_project, interrupted, *LONG, reward=Interrupting(NEVER), resume=True).summary()["steps"]
        == saved.state.step
    )


def test_a_reference_that_is_gone_is_named(
    tiny_project: TinyProject, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="no longer in the cache"):
        run(
            tiny_project,
            interrupted,
            *LONG,
            "loss.kl_coefficient=0.1",
            reward=Interrupting(NEVER),
            resume=True,
            accept=["loss"],
        )
    assert RunFolder(interrupted).summary()["status"] == "failed"


# --- Ctrl-C from outside


def _arpo(*arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "arpo", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_ctrl_c_ends_after_a_checkpoint_and_resume_goes_on(
    tiny_run: Path, tiny_project: TinyProject, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = _arpo("train", tiny_project.recipe, *QUIET, "train.steps=500", "train.save_every=500", "--out", out)
    patience = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_bytes().splitlines()) < 2:
        assert time.monotonic() < patience and process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and said.strip().endswith("stopped") and "Traceback" not in said
    saved, _ = checkpoint.newest(out / "checkpoints")
    assert saved is not None and saved.state.step == len(RunFolder(out).metrics()) >= 2
    assert RunFolder(out).state() == "interrupted"
    screen = Console(file=io.StringIO(), width=200)
    train(load_recipe(out, [f"train.steps={saved.state.step + 1}"]), out=out, resume=True, console=screen)
    assert f"step {saved.state.step + 1}/" in screen.file.getvalue()  # type: ignore[attr-defined]
    assert [line["step"] for line in RunFolder(out).metrics()] == list(range(1, saved.state.step + 2))


def test_ctrl_c_is_heard_while_the_event_loop_stands_still(capfd: pytest.CaptureFixture[str]) -> None:
    """As in an update: it is answered at once, and whoever asks between two layers knows; a second one waits for
    nothing."""

    async def update(presses: int) -> None:
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
            assert is_stopping()
        heard.append(presses)
        await asyncio.sleep(10)

    heard: list[int] = []
    for presses in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run_to_end(update(presses))
        assert "stopping: what is finished is kept. Ctrl-C again stops at once." in capfd.readouterr().err
    assert heard == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_in_the_cold_start_waits_for_no_update(tiny_project: TinyProject, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = _arpo("train", tiny_project.recipe, "cold_start.steps=100000", "--out", out)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=600)
    _, answered, after = said.partition("stopping: what is finished is kept")
    assert process.returncode == 130 and answered and "Traceback" not in said
    assert not re.search(r"^step \d", after, re.MULTILINE), "an update ended after the signal"
    assert RunFolder(out).state() == "interrupted" and not list((out / "checkpoints").iterdir())


def test_ctrl_c_while_sampling_waits_for_one_decoding_step(tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []

    async def turn(engine: LocalEngine, number: int) -> None:
        async for _ in engine.sample(range(5, 30 + number), SamplingParams(max_tokens=400, head=3, seed=number)):
            if not steps:
                steps.append(engine.stats.steps)
                os.kill(os.getpid(), signal.SIGINT)

    async def sampling() -> None:
        engine = LocalEngine(tiny_llama(tokenizer), dtype="float32")
        try:
            await asyncio.gather(*(turn(engine, number) for number in range(8)))
        finally:
            await engine.close()
            steps.append(engine.stats.steps)

    with pytest.raises(KeyboardInterrupt):
        run_to_end(sampling())
    assert "stopping: what is finished is kept" in capfd.readouterr().err
    signalled, closed = steps
    assert closed - signalled <= 2 * torch.get_num_threads(), "of each lane: the one that was under way, and one more"


# --- how runs end


def test_closed_gates_stop_a_run(tiny_project: TinyProject, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="leaves in the right format"):
        run(tiny_project, tmp_path / "run", "train.gates={format: 1.1}")
    summary = RunFolder(tmp_path / "run").summary()
    assert summary["status"] == "stopped" and "leaves in the right format" in summary["reason"]
    assert summary["accuracy_before"]["n"] == 4, "what was measured is there"


def dead(_config: Any, _model: Any, tokenizer: Any) -> ScriptedEngine:
    return ScriptedEngine(lambda prompt, params: Script(said="x", fails_after=0), tokenizer)


def test_a_failure_is_written_down_and_not_cached(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("engine.kind=test_pipeline:dead", "evaluation.seed=77")
    with pytest.raises(EngineError, match=r"'before'.*the script fails after 0 tokens"):
        run(tiny_project, tmp_path / "run", *plan)
    summary = RunFolder(tmp_path / "run").summary()
    assert (
        summary["status"] == "failed"
        and "the script fails" in summary["reason"]
        and "evaluation_before" in summary["seconds"]
    )
    start = SFTCache(load_recipe(tiny_project.recipe, [*QUIET, *plan]))
    assert start.model is not None, "the cold start had come out well"
    kept = [read_manifest(folder) for folder in (start.path / "evaluation").iterdir()]
    assert all(manifest.settings["seed"] != 77 for manifest in kept)


def test_a_run_without_time_for_a_step_has_failed(tiny_project: TinyProject, tmp_path: Path) -> None:
    """It is no success to have measured the model from before; but what was measured is there."""
    with pytest.raises(ArpoError, match=r"not one of 2 steps was trained.*train\.minutes: 0\.01"):
        run(tiny_project, tmp_path / "run", "train.minutes=0.01")
    summary = RunFolder(tmp_path / "run").summary()
    assert summary["status"] == "failed" and summary["steps"] == 0 and summary["steps_planned"] == 2
    assert (
        "train.minutes" in summary["reason"]
        and summary["accuracy_before"]["n"] == 4
        and "accuracy_after" not in summary
    )
    assert "failed" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("data.test.source=nowhere.jsonl", r"data\.test\.source: no such file"),
        ("tools=[{use: search, options: {documents: nowhere}}]", r"tools\.offered\.0\.options\.documents"),
        ("tools=[nothing:here]", r"tools\.offered\.0\.use"),
        ("reward.use=nothing:here", r"reward\.use"),
        ("cold_start.traces=nowhere.jsonl", "nowhere"),
        ("model.source=./nowhere", r"model\.source"),
    ],
)
def test_a_start_that_fails_leaves_the_folder_free(
    tiny_project: TinyProject, tmp_path: Path, mistake: str, named: str
) -> None:
    with pytest.raises(ArpoError, match=named):
        run(tiny_project, tmp_path / "run", mistake)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("of an earlier run\n")
    with pytest.raises(ArpoError, match=named):
        train(
            load_recipe(tiny_project.recipe, [*QUIET, mistake]),
            out=tmp_path / "run",
            again=True,
            console=Console(quiet=True),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "the earlier run was moved aside for nothing"


def test_what_to_do_with_a_folder_that_is_taken_is_said(tiny_run: Path, tiny_project: TinyProject) -> None:
    with pytest.raises(ArpoError, match=r"--resume.*--again.*--out"):
        run(tiny_project, tiny_run)


def test_the_best_weights_are_what_is_measured(tiny_project: TinyProject, tmp_path: Path) -> None:
    """At a rate that ruins the model, the first validation is the best."""
    plan = ("train.steps=4", "train.eval_every=1", "optim.lr=0.3", "evaluation={limit: 12, greedy_limit: 0}")
    found = run(tiny_project, tmp_path / "run", *plan)
    newest, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None and found.summary()["model_step"] == newest.state.best_step
    if newest.state.best_step != 4:
        assert any(f"going on with step {newest.state.best_step}" in text for text in texts(found))


def test_the_engine_gets_its_first_weights_as_it_gets_all_others(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, update_weights = [], LocalEngine.update_weights

    async def noted(self: LocalEngine, weights: Weights) -> None:
        versions.append(weights.version)
        await update_weights(self, weights)

    monkeypatch.setattr(LocalEngine, "update_weights", noted)
    run(tiny_project, tmp_path / "run", "cold_start=null", "data.test=null", "train.steps=1")
    assert versions == [0, 1]


# --- what runs share


def test_a_second_run_reuses_cold_start_and_first_evaluation(
    tiny_run: Path, tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the evaluation took the machine a day then costs the run none of its minutes now."""
    start = SFTCache(load_recipe(tiny_project.recipe))
    files = {path: path.stat().st_mtime_ns for path in start.path.rglob("*") if path.is_file()}
    kept = SFTCache.evaluation
    slow = lambda *of: (results := kept(*of)) and replace(results, seconds=86_400.0)  # noqa: E731
    monkeypatch.setattr(SFTCache, "evaluation", slow)
    same = ("evaluation={limit: 12, greedy_limit: 6}", "name=second", "seed=8", "train.minutes=60")
    second = run(tiny_project, tmp_path / "run", *same)
    assert len(second.metrics()) == 2, "all of its steps"
    assert {path: path.stat().st_mtime_ns for path in start.path.rglob("*") if path.is_file()} == files
    first, summary = RunFolder(tiny_run).summary(), second.summary()
    assert (
        summary["accuracy_before"] == first["accuracy_before"] and summary["cold_start_key"] == first["cold_start_key"]
    )
    assert "cold_start" not in summary["seconds"]
    assert second.metrics()[0]["reward/leaves"] != RunFolder(tiny_run).metrics()[0]["reward/leaves"], "another seed"


@pytest.mark.slow  # the cache's side of it: tests/sft/test_sft_cache.py
def test_a_damaged_cold_start_is_made_anew(own_project: TinyProject, tmp_path: Path) -> None:
    short = ("cold_start.steps=2", "train.steps=1")
    run(own_project, tmp_path / "a", *short)
    start = SFTCache(load_recipe(own_project.recipe, [*QUIET, *short]))
    weights = start.path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    again = run(own_project, tmp_path / "b", *short)
    assert start.model is not None and "cold_start" in again.summary()["seconds"]


@pytest.mark.parametrize(
    "overrides", [pytest.param((), marks=pytest.mark.slow), ("model.lora={rank: 4}",)], ids=["full", "lora"]
)
def test_the_same_recipe_makes_the_same_cold_start_whatever_the_run_s_seed(
    own_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: Sequence[str]
) -> None:
    made = []
    for seed in (1, 2):
        monkeypatch.setenv("ARPO_CACHE", str(tmp_path / f"cache-{seed}"))
        torch.manual_seed(seed)  # whatever ran before in this process
        short = ("cold_start.steps=2", "train.steps=1", f"seed={seed}", *overrides)
        run(own_project, tmp_path / f"run-{seed}", *short)
        model = SFTCache(load_recipe(own_project.recipe, [*QUIET, *short])).model
        assert model is not None
        made.append(_tensors(model))
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_new_adapters_follow_the_run_s_seed(own_project: TinyProject) -> None:
    def adapters(seed: int) -> list[torch.Tensor]:
        recipe = load_recipe(own_project.recipe, ["cold_start=null", "model.lora={rank: 4}", f"seed={seed}"])
        model = build_components(recipe, own_project.model).model
        return [p.detach() for name, p in model.named_parameters() if "lora_A" in name]

    def same(a: int, b: int) -> bool:
        return all(x.equal(y) for x, y in zip(adapters(a), adapters(b), strict=True))

    assert same(1, 1) and not same(1, 2)


# --- data


def test_what_is_wrong_with_data_is_said(own_project: TinyProject, tmp_path: Path) -> None:
    test = own_project.folder / "test.jsonl"
    lines = [json.dumps(question(4)), json.dumps({"id": "blank", "question": "Parity of 99", "answer": ""})]
    test.write_text(test.read_text() + "\n".join(lines) + "\n")
    found = run(own_project, tmp_path / "run", "cold_start=null", "train.steps=1")
    assert any("test data" in text and "1 skipped" in text for text in texts(found))
    (said,) = [note for note in found.notes() if "in train and in test" in note["text"]]
    assert said["level"] == "warning" and "Parity of 4" in said["text"]


def test_a_run_whose_trees_cannot_branch_says_so_before_it_starts(own_project: TinyProject) -> None:
    """Fewer leaves on the command line, and the recipe's roots are all of them."""
    notes = prepare(load_recipe(own_project.recipe, ["rollout.leaves=3"])).notes
    assert [level for text, level in notes if "no tree can branch" in text and "rollout.roots (3)" in text] == [
        "warning"
    ]
    assert not any("branch" in text for text, _ in prepare(load_recipe(own_project.recipe)).notes)


@pytest.mark.parametrize("role", ["validation", "test"])
def test_splits_are_not_the_same_tasks(own_project: TinyProject, role: str) -> None:
    with pytest.raises(ArpoError, match="the same tasks"):
        load_recipe(own_project.recipe, [f"data.{role}={{source: {own_project.folder / 'train.jsonl'}}}"])
