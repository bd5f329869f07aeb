"""Files of tasks and traces that are damaged in every way there is: a task, or an ArpoError that names the file;
nothing else."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from arpo.errors import ArpoError, ConfigError, FormatError
from arpo.tasks import Task
from arpo.tasks.data import DataConfig, load
from arpo.tasks.traces import load_traces

ROW = b'{"question": "q", "answer": "a"}\n'
lenient = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path, kind: type[ArpoError] = FormatError) -> str:
    with pytest.raises(kind) as caught:
        load(DataConfig(source=str(path)))
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_a_folder_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    message = refusal(tmp_path / name, ConfigError)
    assert message.startswith("source: is a folder, not a file") and name in message


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-32"])
def test_another_encoding_is_named_or_at_least_its_first_byte(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('[{"question": "é?", "answer": "é"}]'.encode(encoding))
    message = refusal(tmp_path / name)
    assert name in message and (
        ("UTF-16" in message) if encoding == "utf-16" else ("UTF-8" in message or "JSON" in message)
    )


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", b""), ("x.jsonl", b" \n\n"), ("x.json", b""), ("x.json", b"[]")]
)
def test_an_empty_file_says_so(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert name in message and ("is empty" in message or "holds no rows" in message)


def test_a_file_that_the_system_does_not_give(tmp_path: Path) -> None:
    memory = Path("/proc/self/mem")
    if not memory.is_file():
        pytest.skip("no /proc")
    (tmp_path / "x.jsonl").symlink_to(memory)
    assert "cannot be read" in refusal(tmp_path / "x.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    assert "no such file" in refusal(tmp_path / "loop.jsonl", ConfigError)


@pytest.mark.parametrize(
    "bad", ["9" * 5000, "[" * 100_000, '"\\ud800', "1e999", "NaN", "tru"], ids=lambda text: text[:6]
)
def test_json_that_python_stumbles_over_is_named_by_its_line(bad: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(ROW.decode() + '{"question": "q", "answer": ' + bad + "}\n")
    assert "x.jsonl, line 2" in refusal(tmp_path / "x.jsonl")
    trace = '{"question": "q", "answers": ["a"], "steps": [{"answer": "a"}]}\n'
    (tmp_path / "traces.jsonl").write_text(trace + '{"question": ' + bad + "}\n")
    with pytest.raises(FormatError, match=r"traces\.jsonl, line 2"):
        load_traces(tmp_path / "traces.jsonl")


# --- by the thousand


def damaged(raw: bytes, data: st.DataObject) -> bytes:
    """`raw` cut, flipped in places, or with a piece of something else in it."""
    how = data.draw(st.sampled_from(["cut", "flip", "insert", "drop", "repeat"]))
    at = data.draw(st.integers(0, len(raw)))
    other = data.draw(st.integers(0, len(raw)))
    match how:
        case "cut":
            return raw[:at]
        case "flip":
            flipped = bytearray(raw)
            for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
                flipped[place] ^= 1 << data.draw(st.integers(0, 7))
            return bytes(flipped)
        case "insert":
            return raw[:at] + data.draw(st.binary(min_size=1, max_size=8)) + raw[at:]
        case "drop":
            return raw[: min(at, other)] + raw[max(at, other) :]
        case _:
            return raw[:at] + raw[min(at, other) :]


def loads_or_says_why(name: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(raw)
        try:
            tasks: list[Any] = load_traces(path) if name.startswith("trace") else load(DataConfig(source=str(path)))
        except ArpoError as error:
            assert name in str(error)
        else:
            assert tasks


def content_of(name: str) -> bytes:
    rows = [
        {"question": f"quéstion {n}?", "answer": [str(n), "x"], "level": n / 3, "deep": {"a": [n]}} for n in range(4)
    ]
    steps = [{"calls": [{"name": "s", "arguments": {"q": 1}}], "results": ["r"]}, {"thought": "t", "answer": "a"}]
    match name:
        case "x.jsonl":
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        case "x.json":
            return json.dumps(rows).encode()
        case "traces.jsonl":
            return (json.dumps({"question": "q", "answers": ["a"], "steps": steps}) + "\n").encode() * 2
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "traces.jsonl"])
@lenient
@given(data=st.data())
def test_a_damaged_file_gives_tasks_or_says_why(name: str, data: st.DataObject) -> None:
    loads_or_says_why(name, damaged(content_of(name), data))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "traces.jsonl"])
@lenient
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_tasks_or_say_why(name: str, raw: bytes) -> None:
    loads_or_says_why(name, raw)


def test_parquet_cut_at_any_byte_is_named() -> None:
    raw = content_of("x.parquet")
    for count in range(0, len(raw), 7):
        loads_or_says_why("x.parquet", raw[:count])


def test_a_parquet_column_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    raw = content_of("x.parquet").replace(b"question", b"questio\xff")
    (tmp_path / "x.parquet").write_bytes(raw)
    assert "x.parquet: not a readable parquet file" in refusal(tmp_path / "x.parquet")


# --- functions that give tasks


def raises(split: str, **options: Any) -> list[object]:
    raise KeyError(split)


def raises_later(split: str) -> Any:
    yield {"question": "q", "answer": "a"}
    raise OSError("the server is away")


def gives(split: str, what: str) -> object:
    user = {"role": "user", "content": "q"}
    made: dict[str, Any] = {
        "nothing": [],
        "a text": "tasks",
        "a number": 3,
        "no id": [Task(id="", messages=(user,), answers=())],
        "a number as id": [Task(id=3, messages=(user,), answers=())],  # type: ignore[arg-type]
        "no messages": [Task(id="a", messages=(), answers=())],
        "a text as messages": [Task(id="a", messages="q", answers=())],  # type: ignore[arg-type]
        "a message without content": [Task(id="a", messages=({"role": "user"},), answers=())],
        "a blank question": [Task(id="a", messages=({"role": "user", "content": " "},), answers=())],
        "a text as answers": [Task(id="a", messages=(user,), answers="a")],  # type: ignore[arg-type]
        "numbers as answers": [Task(id="a", messages=(user,), answers=(1,))],  # type: ignore[arg-type]
        "a row without answer": [{"question": "q"}],
    }
    return made[what]


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        ("raises", {}, "KeyError.*train"),
        ("raises", {"unknown": 1}, "KeyError"),
        ("raises_later", {}, "OSError: the server is away"),
        ("raises_later", {"colour": 1}, "TypeError.*colour"),
        ("gives", {"what": "nothing"}, "no rows"),
        ("gives", {"what": "a text"}, "should return a list of tasks"),
        ("gives", {"what": "a number"}, "should return a list of tasks"),
        ("gives", {"what": "no id"}, "item 1: a task's id"),
        ("gives", {"what": "a number as id"}, "item 1: a task's id.*3"),
        ("gives", {"what": "no messages"}, "item 1, task a: messages"),
        ("gives", {"what": "a text as messages"}, "item 1, task a: messages.*'q'"),
        ("gives", {"what": "a message without content"}, "item 1, task a: messages"),
        ("gives", {"what": "a blank question"}, "item 1, task a: messages"),
        ("gives", {"what": "a text as answers"}, "item 1, task a: answers.*'a'"),
        ("gives", {"what": "numbers as answers"}, "item 1, task a: answers"),
        ("gives", {"what": "a row without answer"}, "item 1: no answer column"),
    ],
)
def test_what_a_function_does_wrong_is_named(function: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=rf"{function}.*{words}"):
        load(DataConfig(source=f"{__name__}:{function}", options=options))
