"""What somebody sees of a download: few lines in a log, a bar in a terminal, and never a bar left behind."""

import io

import pytest

from arpo.display.progress import Quarters, WorkProgress
from arpo.display.terminal import Console


def shown(*calls: tuple[str, float], terminal: bool = False) -> str:
    file = io.StringIO()
    with WorkProgress(Console(file=file, width=80, force_terminal=terminal)) as bar:
        for what, done in calls:
            bar(what, done)
    return file.getvalue()


DOWNLOAD = [("fetching x", share / 100) for share in range(101)]


def test_a_log_gets_a_line_a_quarter() -> None:
    text = shown(*DOWNLOAD, ("converting x", 0.0), ("converting x", 1.0), ("model ready", 1.0))
    assert text.splitlines() == [
        "fetching x ...",
        *(f"fetching x: {share}%" for share in (25, 50, 75, 100)),
        "converting x ...",
        "converting x: 100%",
        "model ready",
    ]


def test_a_terminal_gets_a_bar_once_something_is_known() -> None:
    assert "━" not in shown(("fetching x", 0.0), ("fetched x", 1.0), terminal=True)
    text = shown(*DOWNLOAD, terminal=True)
    assert "━" in text and text.startswith("fetching x ...") and "fetching x: 25%" not in text


def test_a_failure_leaves_no_bar_behind() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(RuntimeError), WorkProgress(console) as bar:
        bar("fetching x", 0.0)
        bar("fetching x", 0.4)
        raise RuntimeError
    with WorkProgress(console) as another:  # rich allows one live display at a time
        another("fetching x", 0.0)
        another("fetching x", 0.4)


def test_a_detail_may_change_and_is_no_new_work() -> None:
    calls = [(f"reading documents ({n})", 0.0) for n in (5, 10)]
    assert shown(*calls, ("counting words", 0.0)).splitlines() == ["reading documents ...", "counting words ..."]
    assert "(10)" in shown(*calls, terminal=True)


def test_quarters_pass_once() -> None:
    quarters = Quarters()
    assert [done for done in (0, 1, 2, 3, 3, 4, 5, 6) if quarters.passed(done / 6)] == [2, 3, 5, 6]
