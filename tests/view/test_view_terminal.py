"""`arpo show`: a tree in words, whatever stands in it."""

import io
import re
from pathlib import Path

import pytest
from recorded import NASTY

from arpo.cli.viewing import show
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.runs.folder import RunFolder
from arpo.terminal_safe import terminal_safe
from arpo.view.forks import forks
from arpo.view.library import Library
from arpo.view.terminal import print_table


def printed(run, **asked):
    console = Console(record=True, width=300, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(run, **{"task": None, "step": None, "whole": False, **asked}, console=console)
    return console.export_text()


def test_every_segment_leaf_and_decision_is_printed(tiny_run, tiny_project):
    record = next(iter(RunFolder(tiny_run).trees(1)))
    text = printed(tiny_run, task=record.tree.task, step=1)
    for place, turn in record.tree.turns.items():
        assert f"{'.'.join(map(str, place))} {turn.role.value}" in text
    assert text.count(", reward ") == len(record.scores)
    said = re.findall(r"rise [+-]\d\.\d\d .*: (?:wanted \d+, )?(no branch|\d+ branch)", text)
    assert len(said) == sum(made.tip is not None for made in record.decisions.values())
    granted = sum(made.decided.granted for made in record.decisions.values())
    assert sum(int(one.split()[0]) for one in said if one != "no branch") == granted
    paid = re.findall(r"the probe's with \S+: (helped|hurt|no difference)", text)
    assert len(paid) == sum(sum(fork.compared) > 0 for fork in forks(record))


def test_without_a_task_the_last_steps_trees_are_listed(tiny_run):
    text = printed(tiny_run)
    assert "step 2" in text and all(record.tree.task in text for record in RunFolder(tiny_run).trees(2))


def test_mistakes_are_named(tiny_run, tmp_path):
    id = next(iter(RunFolder(tiny_run).trees(2))).tree.task
    with pytest.raises(ConfigError, match=f"no step has a tree.*such as.* {id}"):
        printed(tiny_run, task=id[1:])
    with pytest.raises(ConfigError, match="there are 1 to 2"):
        printed(tiny_run, step=9)
    with pytest.raises(ConfigError, match="holds no run"):
        printed(tmp_path)


def test_texts_cannot_steer_the_terminal(nasty_run):
    for number in range(len(NASTY)):
        text = printed(nasty_run, task=f"nasty/{number}", whole=number != len(NASTY) - 1)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ufeff\ud800-\udfff]", text)
    assert "⟨U+202E⟩" in printed(nasty_run, task="nasty/4")


def test_unseen_signs_are_spelled_out():
    assert terminal_safe("a\U000e0041\u00adb") == "a⟨U+E0041⟩⟨U+00AD⟩b"
    assert (
        terminal_safe("a\u200bb\x1b\ufeff\u2066\n\tc é 日本 🙂") == "a⟨U+200B⟩b⟨U+001B⟩⟨U+FEFF⟩⟨U+2066⟩\n\tc é 日本 🙂"
    )


def test_terminal_and_page_spell_out_the_same_signs():
    source = (Path(__file__).parents[2] / "viewer/src/text.tsx").read_text(encoding="utf-8")
    (page,) = re.findall(r"^const HIDDEN = /(.*)/gu;$", source, re.MULTILINE)
    hidden = re.compile(re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: f"\\U{int(found[1], 16):08x}", page))
    for number in range(0xF0000):
        assert bool(hidden.fullmatch(chr(number))) == (terminal_safe(chr(number)) != chr(number)), hex(number)


@pytest.mark.parametrize(
    ("width", "columns"), [(30, ["task", "reward"]), (60, ["task", "reward", "branches", "helped"])]
)
def test_a_narrow_terminal_gets_fewer_columns_and_whole_ones(tiny_run, width, columns):
    rows = Library([tiny_run]).answer("/api/runs/tiny/trees", {"step": "1"})["rows"]
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(console, rows, "trees")
    lines = console.export_text().splitlines()
    assert lines[1].split() == columns
    assert [line.split()[0] for line in lines[2:]] == [row["task"] for row in rows]
