"""Loading tasks: real files as they are, every form of answer, and wrong content named by file, line, key and value."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from arpo.errors import ConfigError, FormatError
from arpo.tasks import Task
from arpo.tasks.data import DataConfig, LoadReport, load, load_with_report
from arpo.tasks.golds import golds
from arpo.tasks.rows import TextRepair, without_nulls

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")


def jsonl(tmp_path: Path, *rows: object, name: str = "x.jsonl") -> DataConfig:
    path = tmp_path / name
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return DataConfig(source=str(path))


def test_ids_of_the_rows_are_kept(tmp_path: Path) -> None:
    rows = [
        {"id": id, "question": f"{n}?", "answer": "a"} for n, id in enumerate(["one", 2, "", None, True, "one", 1.5])
    ]
    tasks, report = load_with_report(jsonl(tmp_path, *rows))
    assert [task.id for task in tasks] == ["one", "2", "x/3", "x/4", "x/5", "x/6", "x/7"]
    assert "1 rows repeat an earlier id" in str(report)


# real files


@real
def test_the_training_file_is_read_as_it_is() -> None:
    tasks, report = load_with_report(DataConfig(source=str(SHARED / "train/train_10k.parquet")))
    assert (report.rows, report.tasks, len(tasks), report.duplicates) == (10_000, 9_999, 9_999, 37)
    (skipped,) = report.skipped
    assert skipped.place.endswith("train_10k.parquet, row 5275")
    assert (skipped.key, "' '" in skipped.reason) == ("reward_model.ground_truth", True)
    assert report.mended is not None and report.mended["control character read as a backslash"] >= 20_000
    task = tasks[0]
    assert task.answers == ("3\\sqrt{3} - 6",) and task.source == "DR_grpo_mix" and len(task.messages) == 1
    assert "\\boxed{answer here}" in str(task.metadata["system_prompt"]) and task.metadata["ability"] == "math"
    assert not any(
        ord(c) < 32 and c not in "\n\r\t" for task in tasks for c in task.question + str(task.metadata["system_prompt"])
    )
    assert sum("\\frac{m}{n}" in task.question for task in tasks) >= 21
    assert "5275" in str(report) and "37" in str(report)


@real
def test_duplicates_are_dropped_on_request() -> None:
    tasks, report = load_with_report(DataConfig(source=str(SHARED / "train/train_10k.parquet"), duplicates="drop"))
    assert len(tasks) == 9_999 - 37 and report.duplicates == 37
    assert len({task.question for task in tasks}) == len(tasks)


@real
@pytest.mark.parametrize(("name", "count"), [("valid", 180), ("hard_search_1k", 1071)])
def test_the_other_parquet_files_are_read_whole(name: str, count: int) -> None:
    tasks, report = load_with_report(DataConfig(source=str(SHARED / f"train/{name}.parquet")))
    assert len(tasks) == count and not report.skipped


@real
@pytest.mark.parametrize(
    ("name", "count", "answers"),
    [
        ("aime24", 30, ("204",)),
        ("aime25", 30, ("70",)),
        ("math500", 500, ("\\left( 3, \\frac{\\pi}{2} \\right)",)),
        ("gsm8k", 1319, ("18",)),
        ("hotpotqa", 200, ("Frank Lowy",)),
        ("2wiki", 200, None),
        ("bamboogle", 125, ("james madison",)),
        ("webwalker", 200, None),
        ("xbench", None, ("161.27元",)),
        ("SimpleQA", 500, ("Michio Sugeno",)),
    ],
)
def test_benchmarks_are_read_whatever_their_keys(name: str, count: int | None, answers: tuple[str, ...] | None) -> None:
    path = SHARED / f"benchmarks/{name}.jsonl"
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    tasks, report = load_with_report(DataConfig(source=str(path)))
    assert len(tasks) == len(lines) == (count or len(lines)) and not report.skipped
    assert answers is None or tasks[0].answers == answers
    assert tasks[1].id == str(tasks[1].metadata.get("id", f"{name}/2"))
    if name == "2wiki":
        assert "NYC" in tasks[0].answers and len(tasks[0].answers) == 8
    if name == "gsm8k":
        assert all("," not in task.answers[0] and task.answers[0] for task in tasks)
        assert "####" in str(tasks[0].metadata["solution"])


# forms of rows


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"question": "q", "answer": "a"}, ("a",)),
        ({"problem": "q", "answer": 70}, ("70",)),
        ({"Question": "q", "Answer": -1.5}, ("-1.5",)),
        ({"question": "q", "answer": ["a", "b", "a", ""]}, ("a", "b")),
        ({"question": "q", "answers": [1, "one"]}, ("1", "one")),
        ({"question": "q", "answer": "so 1+1=2\n#### 1,234,567"}, ("1234567",)),
        ({"question": "q", "answer": "#### -3.5"}, ("-3.5",)),
        ({"question": "q", "answer": "press #### twice"}, ("press #### twice",)),
        ({"question": "q", "answer": "  x  "}, ("x",)),
        (
            {
                "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
                "reward_model": {"ground_truth": "a"},
            },
            ("a",),
        ),
        ({"question": "q", "answer": 0}, ("0",)),
        ({"question": "q", "answer": 54.0}, ("54",)),  # as a column of whole numbers with a gap is stored
        ({"question": "q", "answer": 1e22}, ("10000000000000000000000",)),
        ({"question": "q", "answer": 1e-7}, ("0.0000001",)),
        # lists and objects, also as JSON, Python or NumPy write them
        ({"question": "q", "answer": '["Ann", "Anne"]'}, ("Ann", "Anne")),
        ({"question": "q", "answer": "['Ann', 'Anne']"}, ("Ann", "Anne")),
        ({"question": "q", "answer": "['Ann' 'Anne']"}, ("Ann", "Anne")),
        ({"question": "q", "answer": "{'target': array(['Ann', 'Anne'], dtype=object)}"}, ("Ann", "Anne")),
        ({"question": "q", "answer": '{"target": ["Ann"]}'}, ("Ann",)),
        ({"question": "q", "reward_model": {"ground_truth": {"target": ["Ann"]}, "style": "rule"}}, ("Ann",)),
        ({"question": "q", "answer": {"value": "Ann", "aliases": ["Anne"], "type": "name"}}, ("Ann", "Anne")),
        ({"question": "q", "answer": "[1, 2]"}, ("[1, 2]",)),  # a list or an interval
        ({"question": "q", "answer": "[1, 2)"}, ("[1, 2)",)),
        # marks
        ({"question": "q", "answer": "<answer>204</answer>"}, ("204",)),
        ({"question": "q", "answer": "Half of 408. #### 204"}, ("204",)),
        ({"question": "q", "answer": r"\boxed{Ann}"}, ("Ann",)),
        ({"question": "q", "solution": r"So $x = \boxed{\frac{1}{2}}$."}, (r"\frac{1}{2}",)),
        ({"question": "q", "final_answer": "7", "solution": r"\boxed{8}"}, ("7",)),
        # further columns
        (
            {"question": "q", "answer": "Ann", "aliases": ["Anne"], "golden_answers": ["Ann", "A."]},
            ("Ann", "A.", "Anne"),
        ),
        ({"question": "q", "answer": "Ann", "answers": ["Anne", "Ann"]}, ("Ann", "Anne")),
        # messages
        ({"prompt": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}], "answer": 1}, ("1",)),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q", "image": None}]}], "answer": 1},
            ("1",),
        ),
        ({"prompt": '[{"role": "user", "content": "q"}]', "answer": 1}, ("1",)),
    ],
)
def test_every_form_of_answer(tmp_path: Path, row: dict, answers: tuple[str, ...]) -> None:
    (task,) = load(jsonl(tmp_path, row))
    assert (task.question, task.answers) == ("q", answers)


USER = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    "row",
    [
        {"data_source": "s", "prompt": USER, "reward_model": {"style": "rule", "ground_truth": "7"}, "extra_info": {}},
        {"question": "q", "golden_answers": ["7"], "prompt": USER, "reward_model": {"ground_truth": {"target": ["7"]}}},
        {"prompt": USER, "reward_model": {"ground_truth": '["7"]', "style": "rule"}, "ability": "math"},
        {"problem": "q", "solution": r"<think>hm</think> so $\boxed{7}$", "messages": USER},
        {"question": "q", "final_answer": "7", "difficulty": 5.0, "r1_solution_1": r"\boxed{8}"},
        {"problem": "q", "answer": "7", "solution": r"\boxed{7}", "generations": ["x"]},
        {"prompt": [{"role": "system", "content": "s"}, *USER], "solution": "<answer> 7 </answer>"},
    ],
    ids=["verl", "Search-R1", "Skywork-OR1", "open-r1", "DeepMath", "OpenR1-Math", "TRL"],
)
def test_rows_load_as_other_projects_ship_them(tmp_path: Path, row: dict) -> None:
    (task,) = load(jsonl(tmp_path, row))
    assert (task.question, task.answers) == ("q", ("7",))


@given(st.lists(st.text(st.characters(exclude_characters="\\#<", exclude_categories=["Cs", "Cc"])), min_size=1))
def test_a_list_of_texts_means_the_same_however_it_is_written(names: list[str]) -> None:
    """As a list, as its JSON and Python text, as an array and as pandas writes one to CSV."""
    import numpy

    names = [name.strip() or "x" for name in names]
    array = numpy.array(names, dtype=object)
    written = [names, json.dumps(names), repr(names), array, {"target": array}]
    assert {golds(form) for form in written} == {golds(names)}


def test_a_solution_with_several_boxes_is_skipped(tmp_path: Path) -> None:
    row = {"question": "q", "solution": r"First \boxed{1}, then \boxed{2}"}
    tasks, report = load_with_report(jsonl(tmp_path, {"question": "q", "answer": "a"}, row))
    assert len(tasks) == 1 and "several boxes: 1, 2" in str(report.skipped[0])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    )
)
def test_what_arrow_fills_with_nulls_is_no_metadata(value: object) -> None:
    """A row means the same as Arrow stores it: with every key of the column, where it had none as null."""

    def filled(item: object) -> object:
        if isinstance(item, dict):
            return {key: filled(item.get(key)) for key in "abcd"}
        return [filled(inner) for inner in item] if isinstance(item, list) else item

    assert without_nulls(filled(value)) == without_nulls(value)


def test_nested_nulls_of_a_parquet_file_are_no_arguments(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    calls = [{"name": "price", "arguments": {"item": "tea"}}, {"name": "open", "arguments": {"day": 1}}]
    rows = [{"question": f"q{n}", "answer": "a", "calls": [call]} for n, call in enumerate(calls)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    tasks = load(DataConfig(source=str(tmp_path / "x.parquet")))
    assert [task.metadata["calls"] for task in tasks] == [[call] for call in calls]


def test_chat_history_stays_and_the_system_prompt_moves_to_the_metadata(tmp_path: Path) -> None:
    roles = [("system", "be kind"), ("user", "1?"), ("assistant", "one"), ("user", "2?")]
    (task,) = load(
        jsonl(tmp_path, {"messages": [{"role": r, "content": c} for r, c in roles], "answer": "two", "level": 3})
    )
    assert [message["role"] for message in task.messages] == ["user", "assistant", "user"]
    assert task.metadata == {"level": 3, "system_prompt": "be kind"}


def test_what_an_environment_starts_from_is_the_setup_of_a_row(tmp_path: Path) -> None:
    setup = {"script": "create table t(a);", "check": "select a from t", "rows": [[None]], "none": None}
    rows = [{"question": "q", "setup": setup}, {"question": "q", "answer": "a", "setup": ["x"], "level": 1}]
    odd = [{"question": "q", "answer": "a", "setup": "a text"}, {"question": "q", "answer": None, "setup": {}}]
    tasks, report = load_with_report(jsonl(tmp_path, *rows, *odd))
    assert [task.setup for task in tasks] == [
        {"script": "create table t(a);", "check": "select a from t", "rows": [[None]]},
        ["x"],
        None,
        {},
    ]
    assert [task.answers for task in tasks] == [(), ("a",), ("a",), ()]
    assert [dict(task.metadata) for task in tasks] == [{}, {"level": 1}, {"setup": "a text"}, {}]
    assert report.notes == ("2 without a reference answer (a verifier or an environment scores them)",)
    with pytest.raises(FormatError, match="no answer column"):
        load(jsonl(tmp_path, {"question": "q"}))


def test_the_same_words_are_another_question_where_they_are_asked_elsewhere(tmp_path: Path) -> None:
    history = [{"role": "user", "content": "Peru"}, {"role": "assistant", "content": "Lima"}]
    asked = {"question": "And now?", "answer": "a"}
    later = {"messages": [*history, {"role": "user", "content": "And now?"}], "answer": "a"}
    rows = [asked, later, {**asked, "setup": {"n": 1}}, {**asked, "setup": {"n": 2}}]
    for kept in ("keep", "drop"):
        data = jsonl(tmp_path, *rows, {**asked, "setup": {"n": 1}}, asked).model_copy(update={"duplicates": kept})
        tasks, report = load_with_report(data)
        assert report.duplicates == 2 and len(tasks) == (6 if kept == "keep" else 4)


def test_columns_may_be_named_also_inside_columns(tmp_path: Path) -> None:
    config = jsonl(tmp_path, {"q": {"text": "why?"}, "gold": {"value": 3}, "question": "not this"})
    (task,) = load(config.model_copy(update={"columns": {"question": "q.text", "answer": "gold.value"}}))
    assert (task.question, task.answers) == ("why?", ("3",))


def test_blank_rows_are_skipped_and_reported(tmp_path: Path) -> None:
    config = jsonl(
        tmp_path,
        {"question": "q", "answer": "a"},
        "",
        {"question": "q2", "answer": " "},
        {"question": "q3", "answer": []},
        {"question": "q4", "answer": None},
        {"question": " ", "answer": "a"},
    )
    tasks, report = load_with_report(config)
    assert [task.id for task in tasks] == ["x/1"] and report.rows == 5
    assert [skipped.place.rsplit(" ", 1)[1] for skipped in report.skipped] == ["3", "4", "5", "6"]
    assert [skipped.key for skipped in report.skipped] == ["answer", "answer", "answer", "question"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{'question': 1}", ["not JSON"]),
        ("[1, 2]", ["expected an object", "[1, 2]"]),
        ({"answer": "a"}, ["no question column", "answer"]),
        ({"question": "q"}, ["no answer column", "question"]),
        ({"question": 3, "answer": "a"}, ["'question'", "3"]),
        ({"question": "q", "answer": True}, ["'answer'", "True"]),
        ({"question": "q", "answer": {"x": 1}}, ["'answer'", "{'x': 1}"]),
        ({"question": "q", "answer": [["a"]]}, ["'answer'", "[['a']]"]),
        ('{"question": "q", "answer": NaN}', ["'answer'", "finite", "nan"]),
        ({"prompt": [], "answer": "a"}, ["'prompt'", "[]"]),
        ({"prompt": [{"role": "tool", "content": "x"}], "answer": "a"}, ["'prompt'", "message 0", "tool"]),
        ({"prompt": [{"role": "user", "content": None}], "answer": "a"}, ["'prompt'", "message 0", "None"]),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "a"}, ["'prompt'", "last message", "assistant"]),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "a"},
            ["'prompt'", "type text", "image"],
        ),
        ({"question": "q", "answer": "B", "answers": ["Ann", "Bob"]}, ["'answers'", "columns.answer"]),
        ({"question": "q", "solution": "seven"}, ["no answer column", "columns.answer"]),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: object, words: list[str]) -> None:
    config = jsonl(tmp_path, {"question": "q", "answer": "a"}, row)
    with pytest.raises(FormatError) as caught:
        load(config)
    assert all(word in str(caught.value) for word in [f"{config.source}, line 2", *words]), str(caught.value)


def test_a_byte_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n{"question": "\xff", "answer": "a"}\n')
    with pytest.raises(FormatError, match="line 2: not UTF-8 at byte 14"):
        load(DataConfig(source=str(path)))


def test_files_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    for name, content in (
        ("a.parquet", b"no parquet"),
        ("b.parquet", b""),
        ("c.json", b'{"question": "q"}'),
        ("d.jsonl", b""),
        ("e.json", b"[]"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            load(DataConfig(source=str(tmp_path / name)))


def test_files_that_are_nearly_right_are_told_what_is_not(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.csv", "question,answer\nHow much, really?,1\n", "line 2: expected 2 columns.*double quotes"),
        ("b.csv", "question;answer\na;1\n", "no question column.*the row has question;answer"),
        ("c.jsonl", json.dumps([{"question": "q", "answer": "a"}], indent=1), r"line 1: starts a list.*\.json file"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(FormatError, match=words):
            load(DataConfig(source=str(tmp_path / name)))


def test_space_after_the_commas_of_a_csv_file_is_no_part_of_names_and_answers(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("question, answer\nq, 1\n")
    (task,) = load(DataConfig(source=str(tmp_path / "x.csv")))
    assert (task.question, task.answers) == ("q", ("1",))


def test_json_and_parquet_hold_the_same_tasks_as_jsonl(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"a{i}", "level": i} for i in range(2500)]
    tasks = load(jsonl(tmp_path, *rows))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert (
        tasks
        == load(DataConfig(source=str(tmp_path / "x.json")))
        == load(DataConfig(source=str(tmp_path / "x.parquet")))
    )


@given(text=st.text())
def test_mending_leaves_no_control_character_and_is_done_once(text: str) -> None:
    mend = TextRepair()
    once = mend(text)
    assert TextRepair()(once) == once
    once.encode("utf-8")
    if once == text:
        assert not mend.counts


@pytest.mark.parametrize(
    ("damaged", "right"),
    [
        ("\x08oxed{1}", "\\boxed{1}"),
        ("\x0crac{1}{2}", "\\frac{1}{2}"),
        ("\x08inom{n}{k}", "\\binom{n}{k}"),
        ("di\x0bfference", "difference"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("a\ud800b", "a\ufffdb"),
    ],
)
def test_damaged_characters_are_mended(damaged: str, right: str) -> None:
    assert TextRepair()(damaged) == right


# sources


def test_shuffling_is_keyed_and_comes_before_the_limit(tmp_path: Path) -> None:
    config = jsonl(tmp_path, *({"question": f"q{i}", "answer": "a"} for i in range(100)))
    shuffled = config.model_copy(update={"shuffle": 3})
    assert [task.id for task in load(config)] == [f"x/{i}" for i in range(1, 101)]
    assert load(shuffled) == load(shuffled) != load(config)
    assert load(shuffled.model_copy(update={"limit": 7})) == load(shuffled)[:7]
    assert load(shuffled.model_copy(update={"shuffle": 4})) != load(shuffled)


def test_the_atlas_by_its_name() -> None:
    tasks, report = load_with_report(
        DataConfig(source="atlas", split="test", options={"families": {"one_hop": 1}}, limit=10)
    )
    assert {task.metadata["family"] for task in tasks} == {"one_hop"} and report.tasks == 10


def questions(split: str, count: int = 2) -> list[object]:
    return [
        Task(id=f"{split}/{i}", messages=({"role": "user", "content": f"{i}?"},), answers=(str(i),))
        for i in range(count)
    ]


def rows(split: str) -> list[object]:
    return [{"question": split, "answer": 1}]


def wrong(split: str) -> object:
    return [{"question": "q", "answer": "a"}, 5]


def same(split: str) -> object:
    return [*questions("a"), *questions("a")]


def test_a_function_gives_tasks_or_rows() -> None:
    here = __name__
    assert [task.id for task in load(DataConfig(source=f"{here}:questions", split="dev", options={"count": 3}))] == [
        "dev/0",
        "dev/1",
        "dev/2",
    ]
    assert load(DataConfig(source=f"{here}:rows"))[0].question == "train"
    with pytest.raises(FormatError, match=r"item 2.*got 5"):
        load(DataConfig(source=f"{here}:wrong"))
    with pytest.raises(FormatError, match="'a/0'"):
        load(DataConfig(source=f"{here}:same"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"source": "nowhere/x.jsonl"}, ["no such file", "nowhere/x.jsonl"]),
        ({"source": "no_such_package.x:y"}, ["cannot import", "no_such_package"]),
        ({"source": "arpo.tasks.atlas:task"}, ["did you mean 'tasks'"]),
        ({"source": "arpo.tasks.atlas:FAMILIES"}, ["is not a function"]),
        ({"source": "atlas", "split": "tset"}, ["tset", "did you mean 'test'"]),
    ],
)
def test_wrong_sources_are_named(config: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(**config))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"source": "atals"}, "atals'.*or atlas"),
        ({"source": "x.tsv"}, r"x\.tsv.*\.parquet"),
        ({"source": "atlas", "options": {"a": 1}}, "families alone"),
        ({"source": "x.jsonl", "options": {"families": ["one_hop"]}}, "no options"),
        ({"source": "atlas", "columns": {"answer": "x"}}, "no columns"),
    ],
)
def test_what_no_source_can_be_asked_for_is_refused_before_anything_is_read(config: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        DataConfig(**config)


def test_wrong_columns_name_the_nearest(tmp_path: Path) -> None:
    config = jsonl(tmp_path, {"question": "q", "solution": "a"})
    with pytest.raises(FormatError, match="did you mean 'solution'"):
        load(config.model_copy(update={"columns": {"answer": "soluton"}}))


@pytest.mark.parametrize("key", [{"limit": 0}, {"limt": 3}, {"duplicates": "maybe"}, {"columns": {"id": "x"}}])
def test_wrong_settings_are_refused(key: dict) -> None:
    with pytest.raises(ConfigError):
        DataConfig(**key)


def test_a_folder_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_list([{"question": f"q{i}", "answer": str(i)} for i in range(5)])
    plain.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": plain, "test": plain.select([4])}).save_to_disk(str(tmp_path / "both"))
    assert [task.answers[0] for task in load(DataConfig(source=f"hf:{tmp_path}/plain"))] == list("01234")
    assert [task.id for task in load(DataConfig(source=f"hf:{tmp_path}/both", split="test"))] == ["both/1"]
    with pytest.raises(ConfigError, match=r"split.*tset.*did you mean 'test'"):
        load(DataConfig(source=f"hf:{tmp_path}/both", split="tset"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty"):
        load(DataConfig(source=f"hf:{tmp_path}/empty"))


def test_an_unreachable_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"source: cannot load from the Hub \(got 'hf:nobody/nothing'\).*reachable"):
        load(DataConfig(source="hf:nobody/nothing"))


def test_without_the_package_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[hub\]'"):
        load(DataConfig(source="hf:org/name"))


def test_a_report_reads_in_one_line() -> None:
    assert str(LoadReport(source="x", rows=2, tasks=2)) == "x: 2 tasks from 2 rows"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "ground_truth"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    row=st.dictionaries(st.sampled_from(["question", "problem", "prompt", "answer", "answers", "reward_model"]), JSON)
    | JSON
)
def test_whatever_a_row_holds_is_a_task_or_a_format_error(
    tmp_path_factory: pytest.TempPathFactory, row: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    try:
        (task,) = load(DataConfig(source=str(path)))
    except FormatError as error:
        assert str(path) in str(error)
    else:
        assert task.question.strip() and all(answer.strip() for answer in task.answers) and task.answers
