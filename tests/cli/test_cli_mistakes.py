"""Wrong arguments of any command: exit code 2 and one message, never a traceback, and nothing written."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner, Result

from arpo.cli.commands import app

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
ODD = [
    "",
    " ",
    "\0",
    "~nobody/x",
    "nowhere",
    "/dev/null",
    "/proc/nowhere",
    "a" * 300,
    "x" * 5000,
    "..",
    "-",
    "é\u2028",
    "a:b",
]


def arpo(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, an empty cache, and no way to the Hub or a package index."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, value in {
        "ARPO_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "COLUMNS": "100",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def is_one_message(done: Result) -> None:
    assert done.exit_code == 2, (done.exit_code, done.output)
    assert done.output.lower().count("error: ") == 1 and "Traceback" not in done.output, done.output
    assert not list(Path().iterdir()), "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nope", "No such command 'nope'"),
        ("--nope", "No such option"),
        ("train", "no recipe was named"),
        ("train ''", "names no recipe"),
        ("train nowhere", "no such recipe"),
        ("train quikstart", "did you mean 'quickstart'"),
        ("train .", "neither a run nor a recipe.yaml"),
        ("train quickstart --nope", "No such option"),
        ("train quickstart --out", "requires an argument"),
        ("train quickstart --out ''", "is empty"),
        ("train quickstart rollout.leaves", "should be key=value"),
        ("train quickstart rollout.leafs=4", "did you mean 'leaves'"),
        ("train quickstart rollout.leaves=many", "a whole number"),
        ("train quickstart rollout.leaves=1", "rollout.leaves"),
        ("train quickstart tools.²=x", "command line"),
        ("train quickstart 'tools={use: serch}'", "tools"),
        ("train quickstart data.train.source=nowhere.jsonl", "no such file"),
        ("train quickstart data.train.source=.", "data.train"),
        ("train quickstart model.source=nowhere --try", "no such folder"),
        ("train quickstart model.source=no/such-model --try", "Hub"),
        ("train --resume nowhere", "no run to resume"),
        ("train --resume ''", "is empty"),
        ("train quickstart --resume nowhere", "no run to resume"),
        ("sft", "Missing argument"),
        ("sft nowhere", "no such recipe"),
        ("eval", "Missing argument"),
        ("eval quickstart --limit 0", "--limit"),
        ("eval quickstart --limit many", "--limit"),
        ("eval quickstart --samples -1", "--samples"),
        ("eval quickstart --model nowhere", "no such folder"),
        ("eval quickstart --model ''", "empty"),
        ("compare", "Missing argument"),
        ("compare nowhere", "holds no run"),
        ("chat", "Missing argument"),
        ("chat ''", "empty"),
        ("chat nowhere", "no such folder"),
        ("chat nowhere --recipe nope", "no such"),
        ("export", "Missing argument"),
        ("export nowhere", "Missing argument"),
        ("export nowhere out", "no run and no checkpoint"),
        ("doctor please", "unexpected extra argument"),
        ("bench nothing", "no such benchmark"),
        ("init", "Missing argument"),
        ("init /dev/null", "cannot be written"),
        (f"init {'a' * 300}", "cannot be written"),
    ],
)
def test_a_mistake_says_what_is_wrong(line: str, says: str) -> None:
    done = arpo(*shlex.split(line))
    assert says in done.output, done.output
    is_one_message(done)


def test_a_project_s_folder_is_no_run_to_resume() -> None:
    Path("recipe.yaml").write_text("data: {train: {source: atlas}}")
    done = arpo("train", "--resume", ".")
    assert (
        done.exit_code == 2
        and "no run to resume" in done.output
        and "arpo train recipe.yaml" in " ".join(done.output.split())
    )
    assert [path.name for path in Path().iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("doctor", "init")])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_wrong_arguments(command: str, data: st.DataObject) -> None:
    """Every place of every command takes something that is nowhere: no combination may be taken for right."""
    options = [
        parameter
        for parameter in _parameters(command)
        if parameter.param_type_name == "option" and parameter.name != "help"
    ]
    line = [command]
    for option in data.draw(st.lists(st.sampled_from(options), max_size=3)) if options else ():
        line.append(option.opts[0])
        if not option.is_flag:
            line.append(data.draw(st.sampled_from(ODD)))
    line += data.draw(st.lists(st.sampled_from(ODD), min_size=1, max_size=3))
    line += data.draw(st.lists(st.sampled_from(["--nope", "x.y", "a=b", "=", "rollout.leaves=0"]), max_size=2))
    is_one_message(arpo(*line))


@pytest.mark.parametrize(
    "name", [name for name in ODD if name not in ("nowhere", "-", "é\u2028", "a:b", " ", "~nobody/x")], ids=ascii
)
def test_folders_that_cannot_be_made(name: str) -> None:
    is_one_message(arpo("init", name))


def _parameters(command: str) -> list[Any]:
    return list(get_command(app).commands[command].params)  # type: ignore[attr-defined]
