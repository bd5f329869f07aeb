"""Every command, end to end on the tiny project: what it prints, what it leaves, and how it ends."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arpo.cli.commands import app
from arpo.core.record import decode
from localhost import Reply, serving
from tiny_project import TinyProject


def arpo(*arguments: Any, typed: str = "") -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def elsewhere(tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder with the project's cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "100")


def test_train_and_resume(tiny_run: Path, tiny_project: TinyProject, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = arpo("train", tiny_project.recipe, "train.steps=1", "evaluation={limit: 3, greedy_limit: 0}", "--out", run)
    assert done.exit_code == 0 and "step 1/1" in done.output and "report.md" in done.output
    again = arpo("train", tiny_project.recipe, "--out", run)
    assert again.exit_code == 2 and "not empty" in again.output
    longer = arpo("train", "--resume", run, "train.steps=2")
    assert longer.exit_code == 0 and "step 2/2" in longer.output and "step 1/2" not in longer.output
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    done = arpo("train", "--resume", run)
    assert done.exit_code == 0 and "this run is finished" in done.output, "2 steps are what it was last asked for"
    (run / "summary.json").unlink()  # as if the last start had been killed
    mistaken = arpo("train", "--resume", run, "train.steps=3", "model.lora={rank: 2}")
    assert mistaken.exit_code == 2 and "no adapters" in mistaken.output
    asked = arpo("train", "--resume", run, "--print")
    assert asked.exit_code == 0 and "steps: 2" in asked.output, (
        "what was changed then holds when it goes on once more, and no mistake"
    )


def test_plan(tiny_project: TinyProject) -> None:
    shown = arpo("plan", tiny_project.recipe, "--gpus", "2xRTX4090-24")
    assert shown.exit_code == 0
    for word in ("on 2 x RTX4090 of 24 GB: 2 ranks", "all trained", "moments", "longest path", "tokens a second"):
        assert word in shown.output, word
    large = ("plan", tiny_project.recipe, "train.token_budget=50_000_000", "--gpus", "RTX4090-24")
    refused = arpo(*large)
    assert refused.exit_code == 2 and "moments" in refused.output
    assert "train.token_budget=4096" in refused.output and "--override" in refused.output
    assert arpo(*large, "train.token_budget=4096").exit_code == 0, "what it names makes it fit"
    anyway = arpo(*large, "--override")
    assert anyway.exit_code == 0 and "warning: model" in anyway.output
    assert arpo("plan", tiny_project.recipe, "--gpus", "many").exit_code == 2
    assert not list(Path().iterdir())


def test_plan_asks_a_hub_that_does_not_answer_once(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with serving(lambda _: Reply(status=503)) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        refused = arpo("plan", tiny_project.recipe, "model.source=somebody/model")
    assert refused.exit_code == 2 and "model.source=FOLDER with a config.json" in refused.output.replace("\n", " ")
    assert len([asked for asked in hub.asked if "somebody/model" in asked.path]) == 1


def test_try(tiny_run: Path, tiny_project: TinyProject, tmp_path: Path) -> None:
    shown = arpo("train", tiny_project.recipe, "--try", "rollout.leaves=4")
    assert shown.exit_code == 0
    for word in (
        "as the model sees it",
        "4 leaves",
        "part by part",
        "what is trained on",
        "memory and time",
        "Nothing was written",
    ):
        assert word in shown.output, word
    assert not list(Path().iterdir())


def test_sft_leaves_a_model_that_eval_and_chat_take(tiny_project: TinyProject, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = arpo(
        "sft", tiny_project.recipe, "cold_start.steps=3", "evaluation={limit: 3, greedy_limit: 0}", "--out", out
    )
    assert done.exit_code == 0 and "loss" in done.output and "accuracy" in done.output
    assert (out / "model.safetensors").is_file() and "supervised cold start" in (out / "README.md").read_text()
    asked = arpo("eval", tiny_project.recipe, "--model", out, "--limit", 2, "--greedy")
    [written] = Path("evaluation").iterdir()
    assert asked.exit_code == 0 and written.name.startswith("tiny-") and written.name.endswith("-model-test-greedy")
    for options in ((), ("--recipe", tiny_project.recipe)):
        talked = arpo("chat", out, *options, typed="Parity of 3\n/quit\n")
        assert talked.exit_code == 0 and "tools: parity" in talked.output
    cached = arpo("sft", tiny_project.recipe, "cold_start.steps=3", "evaluation={limit: 3, greedy_limit: 0}")
    assert cached.exit_code == 0 and "from the cache" in cached.output and Path("runs/tiny-sft/config.json").is_file()


def test_eval_of_a_run_writes_into_the_run(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    done = arpo("eval", run, "--limit", 3, "--samples", 2)
    assert done.exit_code == 0 and "pass@2" in done.output and "step 2 (the last)" in done.output
    assert {"test", "test-greedy", "before"} <= {path.name for path in (run / "evaluation").iterdir()}


def test_compare(tiny_run: Path, tmp_path: Path) -> None:
    done = arpo("compare", tiny_run, tiny_run, "--out", tmp_path / "compared")
    assert done.exit_code == 0 and "tool calls" in done.output
    assert (tmp_path / "compared" / "comparison.md").is_file()


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {  # to a step's file, whose last frame but one starts at a byte
    "a flipped byte": lambda raw, at: raw[: at + 40] + bytes([raw[at + 40] ^ 0xFF]) + raw[at + 41 :],
    "another beginning": lambda raw, at: raw[:at] + b"OPRA" + raw[at + 4 :],
    "a length beyond the end": lambda raw, at: raw[: at + 7] + b"\x01" + raw[at + 8 :],
    "cut off": lambda raw, at: raw[: at + 50],
    "cut off between frames": lambda raw, at: raw[:at],
}
READERS = [["show"], ["show", "--step", "1"], ["show", "--step", "1", "--task", "none"], ["study"], ["retrain"]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_commands_that_read_trees_name_file_and_byte_of_a_damaged_frame(
    damage: str, tiny_run: Path, tmp_path: Path
) -> None:
    """`show` and `view` go on with what could be read."""
    run, places = Path(shutil.copytree(tiny_run, tmp_path / "copy")), {}
    for path in sorted((run / "events").iterdir()):
        raw = path.read_bytes()
        places[path.name] = [start for start, _ in decode(raw).tasks()][-2]
        path.write_bytes(DAMAGE[damage](raw, places[path.name]))
    first, last = places

    def named(text: str, file: str) -> bool:
        return bool(re.search(rf"{file}: (frame \d+|the frame) at byte {places[file]} ", " ".join(text.split())))

    arpo("view", run, "--export", tmp_path / "page.html")
    assert all(named((tmp_path / "page.html").read_text(), file) for file in places)
    for name, *options in READERS:
        done = arpo(name, run, *options)
        assert named(done.output, last if [name, *options] == ["show"] else first), (name, options, done.output)
        assert done.exit_code == (0 if name == "show" and "--task" not in options else 2), (name, options)


def test_export(tiny_run: Path, tmp_path: Path) -> None:
    done = arpo("export", tiny_run, tmp_path / "out")
    assert done.exit_code == 0 and (tmp_path / "out" / "model.safetensors").is_file()
    assert str(tmp_path / "out") in done.output
    talked = arpo("chat", tmp_path / "out", typed="Parity of 3\n/quit\n")
    assert talked.exit_code == 0 and "tools: parity" in talked.output, "an exported model keeps its tools"
    asked = arpo("eval", tmp_path / "out", "--limit", 1, "--greedy")
    assert asked.exit_code == 0, asked.output
    (tmp_path / "out" / "recipe.yaml").unlink()
    plain = arpo("chat", tmp_path / "out")
    assert plain.exit_code == 2 and "no tools and no prompt of its own" in " ".join(plain.output.split())


def test_chat_with_the_model_of_a_recipe(tiny_project: TinyProject) -> None:
    done = arpo("chat", tiny_project.recipe, typed="/quit\n")
    assert done.exit_code == 0 and "tools: parity" in done.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sft", "RECIPE", "cold_start=null"], "no cold start"),
        (["eval", "RECIPE", "--model", "nowhere"], "no such folder"),
        (["eval", "RECIPE", "data.test=null"], "data.test"),
        (["export", "nowhere", "out"], "no run and no checkpoint"),
        (["chat", "nowhere"], "no such folder"),
        (["compare", "nowhere", "elsewhere"], "holds no run"),
        (["train", "RECIPE", "--try", "rollout.branch_tokens=40"], "rollout.branch_tokens"),
        (["train", "RECIPE", "--try", "tools=[nowhere:tool]"], "nowhere"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    tiny_project: TinyProject, arguments: list[str], expected: str
) -> None:
    done = arpo(*[str(tiny_project.recipe) if argument == "RECIPE" else argument for argument in arguments])
    assert done.exit_code == 2 and expected in done.output, done.output
    assert done.output.count("error:") == 1 and not list(Path().iterdir())


# --- chat


def test_chat_talks_with_a_run_and_shows_its_calls(tiny_run: Path) -> None:
    done = arpo("chat", tiny_run, typed="\n".join(f"Parity of {n}" for n in range(3, 13)) + "\n/new\n/what\n")
    assert done.exit_code == 0
    assert "<result>" in done.output and "<answer>" in done.output and "</parity>" in done.output
    assert "(a new conversation)" in done.output and "/what is no command" in done.output


def test_a_long_conversation_forgets_its_beginning(tiny_run: Path) -> None:
    done = arpo("chat", tiny_run, typed="Parity of 3\n" * 12)
    assert done.exit_code == 0 and "its beginning is forgotten" in done.output and "error" not in done.output


def test_a_question_without_end_is_an_error_and_the_talk_goes_on(tiny_run: Path) -> None:
    done = arpo("chat", tiny_run, typed="Parity of " + "12 and " * 400 + "\nParity of 3\n")
    assert done.exit_code == 0 and "leaves no room" in done.output and done.output.count("> ") >= 3


class Typed:
    """Lines of somebody who also presses Ctrl-C (None)."""

    def __init__(self, *lines: str | None) -> None:
        self.lines: Iterator[str | None] = iter(lines)

    def __call__(self, prompt: str) -> str:
        line = next(self.lines, "END")
        if line == "END":
            raise EOFError
        if line is None:
            raise KeyboardInterrupt
        return line


def talk_with(source: Path, *lines: str | None, recipe: str | None = None) -> str:
    import io

    from arpo.cli.chatting import talk
    from arpo.display.terminal import Console

    console = Console(file=io.StringIO(), width=100)
    talk(str(source), recipe, console=console, read=Typed(*lines))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_ctrl_c_at_the_prompt_asks_once_and_then_leaves(tiny_run: Path) -> None:
    assert "once more leaves" in talk_with(tiny_run, None, "/new", None, None, "never read")
    assert talk_with(tiny_run, None, "/new").count("once more") == 1


IMPATIENT = '''"""A tool during which somebody presses Ctrl-C."""

import os
import signal
import time


def parity(number: int) -> str:
    """Parity of a number."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    return "odd"
'''


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(tiny_run: Path, tiny_project: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "impatient_world.py").write_text(IMPATIENT)
    recipe = tmp_path / "impatient.yaml"
    recipe.write_text(f"base: {tiny_project.recipe}\ntools: ['impatient_world:parity']\n")
    model = tiny_run / "checkpoints" / "step-000002" / "model"
    shown = talk_with(model, *["Parity of 7"] * 6, "/new", recipe=str(recipe))
    assert "(stopped)" in shown and "(a new conversation)" in shown


def test_under_torchrun_the_first_process_alone_speaks(
    tiny_project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("train", "sft"):
        mistaken = arpo(name, tiny_project.recipe, "rollout.root=3")
        assert mistaken.exit_code == 2 and "did you mean 'roots'" in mistaken.output
    refused = arpo("doctor")
    assert refused.exit_code == 2 and "without torchrun" in refused.output
    monkeypatch.setenv("RANK", "1")
    assert arpo("doctor").output == ""
