"""Runs to look at: the tiny run as it was recorded, and copies whose trees say something else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from arpo.core.record import TreeRecord
from arpo.core.tree import Observation, RolloutTree
from arpo.runs.folder import RunFolder
from arpo.view.library import Library

NASTY = (
    "<script>alert(1)</script>",
    "</textarea></script><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "<!-- ]]> -->",
    "abc\u202edcba\u202c and \u200bnothing\ufeff",
    "\x1b[2J\x1b]0;owned\x07",
    "\ud800 half a character",
    "x" * 1_000_000,
)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in a folder."""
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def nasty(record: TreeRecord, text: str) -> TreeRecord:
    """The same tree, but everything that somebody wrote in it is `text`."""
    old = record.tree
    tree = RolloutTree(old.task, old.step, old.prompt)
    for place in sorted(old.turns):
        calls = tuple(replace(call, arguments={text[:50]: text}, mended=text) for call in old.turns[place].calls)
        tree.grow(replace(old.turns[place], calls=calls))
        if place in old.observations:
            seen = old.observations[place]
            outcomes = tuple(replace(o, text=text) for o in seen.outcomes)
            tree.grow(Observation(place=place, tokens=seen.tokens, outcomes=outcomes))
    for place, ending in old.endings.items():
        tree.end(place, ending)
    notes = {
        **record.notes,
        "task": {"id": old.task, "question": text, "answers": [text], "family": text[:20], "source": ""},
        "texts": dict.fromkeys(record.notes["texts"], text),
        "prompt": text,
        "answers": dict.fromkeys(record.notes["answers"], text),
    }
    return replace(record, tree=tree, events=(), notes=notes)


@pytest.fixture
def library(tiny_run, tmp_path):
    """Over the tiny run, everything indexed."""
    made = Library([tiny_run], cache=tmp_path / "indexes")
    made.catch_up()
    yield made
    made.close()


@pytest.fixture
def nasty_run(tiny_run, tmp_path):
    """A run of one step whose every text is one of NASTY, a tree each."""
    source = RunFolder(tiny_run)
    first = next(iter(source.trees(1)))
    folder = tmp_path / "nasty"
    with RunFolder.create(folder, source.recipe.read_text(), {}) as run:
        for number, text in enumerate(NASTY):
            tree = replace(nasty(first, text))
            tree.tree.task = f"nasty/{number}"
            run.append_tree(1, tree)
        run.append_metrics(1, {"reward/leaves": 0.5})
        run.note(NASTY[0], step=1, level="warning")
    shutil.copytree(tiny_run / "tokenizer", folder / "tokenizer")
    return folder
