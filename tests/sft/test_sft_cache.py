"""The cache of cold starts: found again by what decides the weights, whole or not at all, never a failure kept."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest

from arpo.evaluation.manifest import EvalManifest, open_evaluation
from arpo.evaluation.questions import BenchmarkQuestions, EvalSpec
from arpo.evaluation.results import EvalResults, summarise
from arpo.evaluation.samples import SampleLog, SampleRecord
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.sft.cache import SFTCache
from arpo.tasks import Task
from tiny_models import tiny_model
from tiny_project import TinyProject, write_tiny_project

ASKED = EvalSpec(name="before", questions=2, samples=1, temperature=1.0, top_p=1.0, seed=0)


@pytest.fixture
def project(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """One of its own, whose files may be changed."""
    project = write_tiny_project(tmp_path / "own", tokenizer)
    monkeypatch.setenv("ARPO_CACHE", str(project.cache))
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.delitem(sys.modules, "tiny_world", raising=False)  # of another test's project
    return project


def start(project: TinyProject, *overrides: str) -> SFTCache:
    return SFTCache(load_recipe(project.recipe, overrides))


def evaluation(folder: Path, endings: Sequence[str] = ("finished", "finished")) -> Path:
    """A folder with samples that ended so."""
    tasks = [
        Task(id=f"q{i}", messages=[{"role": "user", "content": f"{i}?"}], answers=("x",)) for i in range(len(endings))
    ]
    manifest = EvalManifest.from_run(
        RunConfig(data={"train": {"source": "a.jsonl"}}),
        ASKED,
        [BenchmarkQuestions.from_tasks("test", tasks)],
        model="m",
    )
    with open_evaluation(folder, manifest, resume=True), SampleLog(folder) as log:
        for task, ending in zip(tasks, endings, strict=True):
            log.append(
                SampleRecord(benchmark="test", id=task.id, accuracy=1.0, correct=True, reward=1.0, ending=ending), None
            )
        summarise(folder, manifest, seconds=2.5)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        "seed=9",
        "name=other",
        "rollout.leaves=12",
        "rollout.rule=none",
        "rollout.temperature=0.8",
        "rollout.turn_tokens=30",
        "optim.lr=0.5",
        "train.steps=7",
        "train.minutes=3",
        "loss.aggregation=token",
        "evaluation.limit=3",
        "evaluation.seed=3",
        "model.device=auto",
        "model.gradient_checkpointing=true",
        "engine.slots=2",
        "reward={answer: f1}",
        "data.train.limit=4",
        "data.test.limit=4",
    ],
)
def test_what_does_not_decide_the_weights_leaves_the_key_alone(project: TinyProject, change: str) -> None:
    assert start(project, change).key == start(project).key


@pytest.mark.parametrize(
    "change",
    [
        "cold_start.lr=0.5",
        "cold_start.num_traces=3",
        "cold_start=null",
        "chat.result_tokens=11",
        "chat.format=template",
        "rollout.max_calls=3",
        "rollout.at_call_limit=end",
        "optim.weight_decay=0.5",
        "model.dtype=bfloat16",
        "model.lora={rank: 2}",
        'environment={use: sql, options: {script: "create table stock(item text);"}}',
    ],
)
def test_what_decides_the_weights_changes_the_key(project: TinyProject, change: str) -> None:
    assert start(project, change).key != start(project).key


@pytest.mark.parametrize("file", ["traces.jsonl", "tiny_world.py", "model/config.json"])
def test_files_count_by_what_is_in_them(project: TinyProject, file: str) -> None:
    before = start(project).key
    path = project.folder / file
    path.write_text(path.read_text() + ("WORDS = 2\n" if path.suffix == ".py" else "\n"))
    assert start(project).key != before


def test_traces_that_a_function_makes_count_by_what_it_returns(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = project.folder / "made_traces.py"
    source = (
        "from arpo.tasks.traces import load_traces\n"
        "def traces(limit, seed, **options): return load_traces(FILE)[:limit or 9]\n"
    ).replace("FILE", repr(str(project.folder / "traces.jsonl")))

    def key(text: str) -> Path:
        module.write_text(text)
        monkeypatch.delitem(sys.modules, "made_traces", raising=False)
        invalidate_caches()
        return start(project, "cold_start.traces=made_traces:traces").path

    first = key(source)
    assert key(f"{source}# another comment, the same traces\n") == first
    assert key(source.replace("or 9", "or 8 + 0")) != first
    lines = (project.folder / "traces.jsonl").read_text().splitlines()
    (project.folder / "traces.jsonl").write_text("\n".join([*lines[1:9], lines[0]]) + "\n")
    assert key(source) != first, "what the function reads is seen by what it returns"


def test_other_questions_are_asked_anew(project: TinyProject, tmp_path: Path) -> None:
    start(project).keep_evaluation(ASKED, evaluation(tmp_path / "before"))

    def found(spec: EvalSpec = ASKED, *changes: str) -> EvalResults | None:
        return start(project, *changes).evaluation(spec, tmp_path / "copy" / spec.name)

    again = found(ASKED, "name=second", "seed=4")
    assert again is not None and again.name == "before" and again.seconds == 2.5
    assert (tmp_path / "copy" / "before" / "samples.jsonl").read_bytes() == (
        tmp_path / "before" / "samples.jsonl"
    ).read_bytes()
    assert found(replace(ASKED, seed=1)) is None
    assert found(replace(ASKED, name="before-greedy")) is None
    for change in (
        "rollout.turn_tokens=23",
        "rollout.context=drop_results",
        'environment={use: sql, options: {script: "create table stock(item text);"}}',
        "reward={answer: f1}",
        "data.test.limit=4",
        "evaluation.split=validation",
    ):
        assert found(ASKED, change) is None, change
    for change in ("rollout.leaves=12", "rollout.rule=none", "rollout.retries=3"):
        assert found(ASKED, change) is not None, change
    questions = project.folder / "test.jsonl"
    questions.write_text(questions.read_text().replace("even", "odd"))
    assert found() is None


def test_a_model_appears_whole_and_a_damaged_one_counts_as_none(
    project: TinyProject, tokenizer: Any, tmp_path: Path
) -> None:
    own = start(project)
    assert own.model is None
    kept = own.keep(tiny_model("llama").float().save_pretrained, tokenizer)
    assert own.model == kept == start(project).model
    own.keep_evaluation(ASKED, evaluation(tmp_path / "before"))
    weights = kept / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-50])
    assert start(project).model is None
    assert start(project).keep(tiny_model("llama").float().save_pretrained, tokenizer) == kept
    assert weights.read_bytes() == content and start(project).model == kept
    assert start(project).evaluation(ASKED, tmp_path / "copy") is None, "measured on weights that are gone"


def test_what_a_killed_process_left_unfinished_goes(project: TinyProject, tokenizer: Any) -> None:
    start = SFTCache(load_recipe(project.recipe))
    left = [
        start.path / ".partial-model.abc" / "model.safetensors",
        start.path / "evaluation" / ".partial-before.json.def",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    start.keep(tiny_model("llama").save_pretrained, tokenizer)
    assert not any(path.exists() for path in left) and [path.name for path in start.path.iterdir()] == ["model"]


def test_a_damaged_evaluation_counts_as_none(project: TinyProject, tmp_path: Path) -> None:
    own, measured = start(project), evaluation(tmp_path / "before")
    own.keep_evaluation(ASKED, measured)
    (kept,) = (own.path / "evaluation").iterdir()
    for name in ("samples.jsonl", "evaluation.json", "results.json", "MANIFEST.json"):
        content = (kept / name).read_bytes()
        (kept / name).write_bytes(content[:-9])
        assert own.evaluation(ASKED, tmp_path / "copy" / "before") is None, name
        (kept / name).write_bytes(content)
    own.keep_evaluation(ASKED, measured)
    assert own.evaluation(ASKED, tmp_path / "copy" / "before") is not None


def test_what_the_world_spoilt_is_not_kept(project: TinyProject, tmp_path: Path) -> None:
    own = start(project)
    own.keep_evaluation(ASKED, evaluation(tmp_path / "before", ["finished", "engine_failed"]))
    assert own.evaluation(ASKED, tmp_path / "copy") is None
