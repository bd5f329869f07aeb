"""Tasks given as Python objects: read once, refused where they are none, and kept in the run's folder so that it stands
alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arpo
from arpo.assembly.components import read_tasks
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe, show_resolved
from arpo.recipe.run import RunConfig
from arpo.runs.folder import RunFolder
from arpo.tasks import Task
from arpo.tasks.data import DataConfig, load
from arpo.tasks.in_memory import write_tasks
from tiny_project import TinyProject, question

ROWS = [{"question": f"{n} + {n}?", "answer": 2 * n} for n in range(5)]
TASK = Task(
    id="mine",
    messages=({"role": "user", "content": "Why?\n\nSay it shortly."},),
    answers=(),
    metadata={"question": "Why?", "answer": "no gold", "level": 3},
    documents=({"title": "a", "text": "é\u2028"},),
    setup={"deep": [1, None]},
)


def data_set() -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


@pytest.mark.parametrize("given", [list, tuple, iter, lambda rows: (row for row in rows), lambda rows: data_set()])
def test_rows_are_given_by_anything_that_can_be_read_once(given: Any) -> None:
    config = DataConfig(source=given(ROWS))
    for _ in range(2):
        tasks = load(config)
        assert [task.id for task in tasks] == [f"rows/{n}" for n in range(1, 6)] and tasks[4].answers == ("8",)
    shuffled = load(DataConfig(source=ROWS, shuffle=True, limit=3))
    assert len(shuffled) == 3 and {task.question for task in shuffled} < {row["question"] for row in ROWS}


def test_tasks_and_rows_may_be_mixed_and_columns_named() -> None:
    named = load(DataConfig(source=[TASK, {"q": "1?", "gold": "2"}], columns={"question": "q", "answer": "gold"}))
    assert named[0] == TASK and named[1].answers == ("2",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"train": ROWS}, r"data\.train\.source: .*expected one split, not a dict\. It has train"),
        (ROWS[0], r"data\.train\.source: .*It has question, answer"),
        (["1 + 1?"], r"data\.train\.source: .*item 1, .*is neither"),
        (b"rows", r"data\.train\.source: .*not bytes"),
        (7, r"data\.train\.source: .*not int"),
    ],
)
def test_what_holds_no_rows_is_refused(given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig(data={"train": {"source": given}})


def test_two_splits_of_equal_length_are_not_the_same() -> None:
    run = RunConfig(data={"train": {"source": ROWS[:2]}, "test": {"source": ROWS[2:4]}})
    assert "source: 2 rows given in Python" in show_resolved(run)


def test_tasks_are_kept_as_they_are(tmp_path: Path) -> None:
    tasks = [TASK, *load(DataConfig(source=ROWS))]
    write_tasks(tmp_path / "tasks.jsonl", tasks)
    assert load(DataConfig(source=str(tmp_path / "tasks.jsonl"))) == tasks


def test_a_run_keeps_what_it_was_given(tiny_project: TinyProject, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, object]]:
        yield from ({**question(n), "id": f"n{n}"} for n in range(3, 12))

    made = load_recipe(
        tiny_project.recipe, ["train.steps=1", "evaluation={limit: 2, greedy_limit: 0}", "data.validation=null"]
    )
    test = [Task(id="t", messages=({"role": "user", "content": "Parity of 40"},), answers=("even",))]
    data = {"train": {"source": rows(), "shuffle": True, "limit": 7}, "test": {"source": test}}
    run = made.model_copy(update={"data": type(made.data).model_validate(data)})
    quiet = Console(quiet=True)
    folder = arpo.train(run, out=tmp_path / "run", console=quiet)
    kept = load_recipe(folder)
    assert kept.data.train.source == str(tmp_path / "run" / "tasks" / "train.jsonl")
    assert read_tasks(kept, "train")[0] == read_tasks(run, "train")[0] and len(read_tasks(kept, "train")[0]) == 7
    assert read_tasks(kept, "test")[0] == test
    for again in (folder, run):  # by its folder, as the command line does, and by the program
        arpo.train(again, out=folder, resume=True, console=quiet)
    assert RunFolder(folder).summary()["status"] == "finished" and not (folder / "recipe.resumed.yaml").exists()
    longer = run.model_copy(update={"train": run.train.model_copy(update={"steps": 2})})
    arpo.train(longer, out=folder, resume=True, console=quiet)
    trained = [record.tree.task for step in (1, 2) for record in RunFolder(folder).trees(step)]
    assert len(set(trained)) == 6 and all(name.startswith("n") for name in trained)


def test_what_cannot_be_kept_is_refused_before_there_is_a_folder(tiny_project: TinyProject, tmp_path: Path) -> None:
    made = load_recipe(tiny_project.recipe)
    for odd, says in (({"tools": [print]}, "its own tools"), ({"metadata": {"made": object()}}, "JSON cannot hold")):
        given = [Task(id="odd", messages=({"role": "user", "content": "?"},), answers=("1",), **odd)]
        run = made.model_copy(update={"data": type(made.data)(train={"source": given})})
        with pytest.raises(ConfigError, match=rf"data\.train\.source: .*{says}.*'odd'.*pkg\.my_data"):
            arpo.train(run, out=tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
