"""The index: live runs, cut and damaged logs, a cache that is gone; and nothing is ever written into a run."""

import shutil
from dataclasses import replace

import pytest
from recorded import snapshot

from arpo.core.record import encode
from arpo.errors import ConfigError
from arpo.runs.folder import RunFolder
from arpo.view.index import RunIndex
from arpo.view.library import Library


@pytest.fixture
def records(tiny_run):
    return [replace(record, schema=2) for record in RunFolder(tiny_run).trees(1)]


@pytest.fixture
def live(tiny_run, tmp_path):
    """A run that is being written."""
    with RunFolder.create(tmp_path / "live", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        yield run


def tasks(library, **query):
    return [row["task"] for row in library.answer("/api/runs/live/trees", query)["rows"]]


def test_a_live_run_is_followed(live, records, tmp_path):
    library = Library([live.path], cache=tmp_path / "i")
    assert library.answer("/api/runs")["runs"][0]["live"] is True
    library.catch_up()
    assert tasks(library) == []
    names = [record.tree.task for record in records]
    for number, record in enumerate(records, 1):
        live.append_tree(1, record)
        library.catch_up()
        assert tasks(library) == names[:number]
    live.append_metrics(1, {"a": 1.0})
    assert library.answer("/api/runs/live/metrics")["steps"] == [1]
    assert library.answer("/api/runs/live/metrics", {"after": "1"})["steps"] == []
    library.close()


def test_a_step_that_is_asked_for_is_read_at_once_and_the_rest_is_announced(live, records, tmp_path):
    for step in (1, 2, 3):
        live.append_tree(step, records[0])
    library = Library([live.path], cache=tmp_path / "i")
    answer = library.answer("/api/runs/live/trees", {"step": "2"})
    assert answer["total"] == 1 and answer["indexed"] == {"steps": 1, "of": 3}
    library.catch_up()
    assert library.answer("/api/runs/live/trees")["indexed"] == {"steps": 3, "of": 3}
    library.close()


def test_of_two_frames_of_a_task_the_later_counts(live, records, tmp_path):
    live.append_tree(1, replace(records[0], scores={}, advantages={}, credit={}))
    live.append_tree(1, records[0])
    index = RunIndex(live, tmp_path / "i")
    index.catch_up()
    assert index.record(1, records[0].tree.task) == records[0]
    assert index.rows("SELECT COUNT(*) FROM trees") == [(1,)]
    index.close()


def test_what_a_writer_has_not_finished_is_read_when_it_has(live, records, tmp_path):
    frame = encode(records[1])
    live.append_tree(1, records[0])
    path = live.events_path(1)
    index = RunIndex(live, tmp_path / "i")
    for cut in (0, 3, 11, len(frame) // 2, len(frame) - 1):
        whole = path.read_bytes()
        path.write_bytes(whole + frame[:cut])
        index.catch_up()
        assert index.rows("SELECT task FROM trees") == [(records[0].tree.task,)] and index.errors() == []
        path.write_bytes(whole)
    path.write_bytes(path.read_bytes() + frame)
    index.catch_up()
    assert len(index.rows("SELECT task FROM trees")) == 2
    index.close()


def test_steps_that_a_resumed_run_took_back_are_gone(live, records, tmp_path):
    for step in (1, 2):
        live.append_tree(step, records[0])
        live.append_metrics(step, {"a": float(step)})
    library = Library([live.path], cache=tmp_path / "i")
    library.catch_up()
    before = library.answer("/api/runs/live/metrics")
    live.cut_back(1)
    library.catch_up()
    assert library.answer("/api/runs/live/trees")["facets"]["steps"] == [1] and len(tasks(library)) == 1
    after = library.answer("/api/runs/live/metrics")
    assert after["steps"] == [1] and after["generation"] != before["generation"]
    library.close()


def test_a_damaged_log_shows_what_is_whole_and_says_so(live, records, tmp_path):
    live.append_tree(1, records[0])
    path = live.events_path(1)
    path.write_bytes(path.read_bytes() + b"nonsense that is no frame")
    library = Library([live.path], cache=tmp_path / "i")
    library.catch_up()
    assert tasks(library) == [records[0].tree.task]
    (event,) = [e for e in library.answer("/api/runs/live")["events"] if e["kind"] == "warning"]
    assert "frame 1" in event["text"] and event["step"] == 1
    library.close()


def test_the_index_outlives_the_viewer_and_is_not_made_again(tiny_run, tmp_path):
    first = RunIndex(RunFolder(tiny_run), tmp_path / "i")
    first.catch_up()
    rows = first.rows("SELECT * FROM trees")
    first.close()
    again = RunIndex(RunFolder(tiny_run), tmp_path / "i")
    assert again.pending() == [] and again.rows("SELECT * FROM trees") == rows
    again.close()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_damaged_index_is_made_again(tiny_run, tmp_path, content):
    first = RunIndex(RunFolder(tiny_run), tmp_path / "i")
    first.close()
    (path,) = (tmp_path / "i").glob("*.sqlite")
    path.write_bytes(content)
    again = RunIndex(RunFolder(tiny_run), tmp_path / "i")
    again.catch_up()
    assert again.rows("SELECT COUNT(*) FROM trees") == [(6,)]
    again.close()


def test_without_a_cache_it_works_too(tiny_run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    index = RunIndex(RunFolder(tiny_run), tmp_path / "file" / "i")
    index.catch_up()
    assert index.rows("SELECT COUNT(*) FROM trees") == [(6,)]
    index.close()


def test_nothing_is_written_into_a_run(tiny_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    before = snapshot(copy)
    with Library([copy], cache=tmp_path / "i") as library:
        library.catch_up()
        for path in ("", "/metrics", "/trees", "/entropy"):
            library.answer(f"/api/runs/copy{path}")
    assert snapshot(copy) == before


def test_folders_without_a_run_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        Library([tmp_path / "gone"])
    with pytest.raises(ConfigError, match="holds no run"):
        Library([tmp_path])
