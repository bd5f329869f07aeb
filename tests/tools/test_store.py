"""The store of results: what it says it holds it holds, the oldest goes first, a key means one call, readers wait for
nobody."""

import json
import sqlite3
import threading
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import ConfigError, FormatError
from arpo.tools.cache_key import canonical, key_of
from arpo.tools.store import Entry, Store


def entry(number, *, size=500, recorded=False, status=CallStatus.OK, text="", tool="search"):
    words = canonical({"query": f"q{number}"}, {})
    key = key_of(tool, "", words, recorded=recorded)
    said = text or "x" * size
    return Entry(
        key=key, tool=tool, version="", arguments=words, status=status, text=said, made=time.time(), recorded=recorded
    )


# --- keys

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), values, max_size=4), st.randoms())
def test_equal_calls_have_one_form_and_it_is_json(arguments, random):
    names = list(arguments)
    random.shuffle(names)
    form = canonical(arguments, {})
    assert canonical({name: arguments[name] for name in names}, {}) == form
    assert canonical(json.loads(form), {}) == form, "a form is its own form"


@given(st.text(), st.text())
def test_other_text_is_another_call_and_space_is_text(one, other):
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (canonical({"q": one}, {}) == canonical({"q": other}, {})) is same
    assert canonical({"q": f"  {one}\n"}, {}) != canonical({"q": one}, {})


def test_space_inside_a_text_is_kept_and_true_is_not_one():
    assert canonical({"code": "if a:\n  b"}, {}) != canonical({"code": "if a:\n b"}, {})
    assert canonical({"x": 1}, {}) == canonical({"x": 1.0}, {}) != canonical({"x": True}, {})


def test_a_default_left_out_is_the_default():
    schema = {"properties": {"k": {"default": 3}}}
    assert canonical({"k": True}, {"properties": {"k": {"default": 1}}}) != "{}"
    assert canonical({"k": [True]}, {"properties": {"k": {"default": [1]}}}) != "{}"
    assert canonical({"between": ""}, {"properties": {"between": {"default": " "}}}) != "{}"
    assert (
        canonical({"q": "a", "k": 3}, schema) == canonical({"q": "a"}, schema) != canonical({"q": "a", "k": 4}, schema)
    )


def test_tool_version_arguments_and_record_are_told_apart():
    keys = {
        key_of(*parts, recorded=recorded)
        for parts in (("a", "b", "c"), ("ab", "", "c"), ("a", "", "bc"))
        for recorded in (0, 1)
    }
    assert len(keys) == 6 and all(len(key) == 16 for key in keys)


# --- what is held


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 900), st.booleans(), st.sampled_from(["ok", "error"])), max_size=40
    )
)
def test_the_totals_are_those_of_a_recount(tmp_path_factory, puts):
    store = Store(tmp_path_factory.mktemp("s") / "s.sqlite")
    for number, size, recorded, status in puts:
        store.finish(b"", "me", entry(number, size=size, recorded=recorded, status=CallStatus(status)))
    held = list(store.entries())
    recount = (len(held), sum(one.row["size"] for one in held), sum(one.recorded for one in held))
    assert store.totals() == recount
    assert sum(count for _, _, count, *_ in store.by_tool()) == len(held)
    store.close()


def test_an_error_never_takes_the_place_of_a_result(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    for text, status in (
        ("first", CallStatus.ERROR),
        ("second", CallStatus.OK),
        ("third", CallStatus.ERROR),
        ("fourth", CallStatus.OK),
    ):
        store.put([entry(1, text=text, status=status)])
    (found,) = store.get([entry(1).key])
    assert found.text == "fourth" and store.totals()[0] == 1
    store.put([entry(1, text="fifth", status=CallStatus.ERROR)])
    assert store.get([found.key])[0].text == "fourth"


def test_the_least_recently_used_go_first_and_records_stay(tmp_path):
    store = Store(tmp_path / "s.sqlite", max_bytes=1_000_000)
    store.put(entry(number, recorded=True) for number in range(100))
    store.put(entry(number) for number in range(1_000))
    store.touch(entry(number).key for number in range(50))
    time.sleep(0.01)
    store.put(entry(number) for number in range(1_000, 1_400))
    assert store.totals()[1] <= 1_000_000 and store.totals()[2] == 100
    assert all(store.get([entry(number).key]) for number in (*range(50), 1_399)), "used lately"
    assert not store.get([entry(60).key]) and not store.get([entry(500).key])


def test_records_take_no_room_from_the_cache(tmp_path):
    store = Store(tmp_path / "s.sqlite", max_bytes=100_000)
    store.put(entry(number, size=1_000, recorded=True) for number in range(200))
    store.claim(entry(1).key, "me", 30.0)
    store.finish(entry(1).key, "me", entry(1))
    assert store.get([entry(1).key]), "else every live call beside a large record is paid again"


def test_a_clock_that_is_set_back_keeps_nobody_waiting(tmp_path, monkeypatch):
    store, now = Store(tmp_path / "s.sqlite"), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)  # a machine that starts with a wrong clock
    assert store.claim(b"k", "dead", 30.0)
    store.finish(b"f", "dead", None, ToolCallResult(tool="t", status=CallStatus.ERROR, text="no"))
    monkeypatch.setattr(time, "time", lambda: now)
    assert not store.claimed(b"k") and store.claim(b"k", "me", 30.0) and store.claimed(b"k")
    assert store.failure(b"f", now) is None


def test_what_is_written_is_there_for_another_connection_and_after_opening_again(tmp_path):
    one, other = Store(tmp_path / "s.sqlite"), Store(tmp_path / "s.sqlite")
    one.put([entry(1)])
    assert other.get([entry(1).key]) == one.get([entry(1).key]) != []
    one.close()
    other.close()
    assert Store(tmp_path / "s.sqlite").totals()[0] == 1


def test_a_lease_belongs_to_one_until_it_runs_out(tmp_path):
    store, key = Store(tmp_path / "s.sqlite"), b"k" * 16
    assert store.claim(key, "me", 30) and not store.claim(key, "you", 30) and store.claimed(key)
    store.finish(key, "you", None)
    assert store.claimed(key), "nobody gives up what is another's"
    store.finish(key, "me", None)
    assert not store.claimed(key) and store.claim(key, "you", 0.05)
    time.sleep(0.06)
    assert not store.claimed(key) and store.claim(key, "me", 0.05)
    store.renew(key, "me", 30)
    time.sleep(0.06)
    assert store.claimed(key)


def test_who_reads_waits_for_no_writer(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.put([entry(1)])
    holding, done = threading.Event(), threading.Event()

    def write():
        with store._writer() as db:
            db.execute("UPDATE calls SET used = 0")
            holding.set()
            done.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    holding.wait(30)
    assert store.get([entry(1).key]) and store.totals()[0] == 1
    done.set()
    thread.join()


@pytest.mark.parametrize("version", [3, 99])
def test_a_file_of_another_format_is_named(tmp_path, version):
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(ConfigError, match=f"in format {version}.*remove this one"):
        Store(tmp_path / "s.sqlite")
    with pytest.raises(ConfigError, match="cannot be used as a cache"):
        Store(tmp_path)


def test_a_failure_is_for_those_who_waited(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.put([entry(1)])
    key, before = entry(2).key, time.time()
    assert store.claim(key, "me", 30.0)
    store.finish(key, "me", None, ToolCallResult(tool="search", status=CallStatus.ERROR, text="no", fault="told"))
    waited = store.failure(key, before)
    assert waited is not None and (waited.status, waited.text, waited.fault) == (CallStatus.ERROR, "no", "told")
    assert store.failure(key, time.time() + 1e-3) is None and store.get([key]) == [] and store.totals()[0] == 1
    assert store.claim(key, "another", 30.0)


@pytest.mark.parametrize(
    "what", ["status = 'evil'", "arguments = 'no JSON'", "arguments = '[]'", "text = x'ff00'", "made = 'soon'"]
)
def test_a_file_of_somebody_elses_with_what_is_no_result_is_said(tmp_path, what):
    path = tmp_path / "cache.sqlite"
    Store(path).put([entry(1)])
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE calls SET {what}")
    store = Store(path)
    for read in (lambda: store.get([entry(1).key]), lambda: list(store.entries())):
        with pytest.raises(FormatError, match="arpo cache clear"):
            read()
    assert store.clear() == 1


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE calls",
        "DROP TABLE totals",
        "ALTER TABLE calls ADD COLUMN more",
        "DROP TABLE calls; CREATE VIEW calls AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
        " SELECT x AS key, 't' AS tool FROM n",
        "CREATE TRIGGER more BEFORE INSERT ON calls BEGIN SELECT raise(abort, 'no'); END",
        "DELETE FROM totals",
        "UPDATE totals SET bytes = 'many'",
        "INSERT INTO held VALUES (0)",
    ],
)
def test_a_file_of_another_shape_is_no_cache(tmp_path, change):
    path = tmp_path / "cache.sqlite"
    Store(path).put([entry(1)])
    with sqlite3.connect(path) as database:
        database.executescript(change)
    with pytest.raises(ConfigError, match=r"holds what is no cache.*remove this one"):
        Store(path)


def test_odd_dates_sizes_and_servers_of_somebody_elses_file_are_said(tmp_path):
    path = tmp_path / "cache.sqlite"
    Store(path).put([entry(1)])
    for change in ("'soon'", "9e999", "x'00'"):
        with sqlite3.connect(path) as database:
            database.execute(f"UPDATE calls SET made = {change}")
        with pytest.raises(FormatError, match="no result of a tool"):
            Store(path).by_tool()
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO offers VALUES ('s', '{[')")
    with pytest.raises(FormatError, match="no JSON"):
        Store(path).offers()
    with sqlite3.connect(path) as database:
        database.execute('UPDATE offers SET tools = \'[5, {}, {"name": 7}, {"name": "t"}]\'')
    assert Store(path).offers() == {"s": [{"name": "t"}]}


def test_a_damaged_page_is_said(tmp_path):
    path = tmp_path / "cache.sqlite"
    store = Store(path)
    store.put(entry(number) for number in range(300))
    store.clear(tool="nothing")  # all of it goes into the file
    store.close()
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    for read in (Store.totals, Store.by_tool, Store.clear, lambda store: list(store.entries())):
        with pytest.raises(ConfigError, match=r"cache.sqlite"):
            read(Store(path))
