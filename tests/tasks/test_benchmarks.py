"""Every benchmark's entry, its rows in the forms in which they circulate, and what is said about wrong ones."""

import json
import os
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.errors import ConfigError, FormatError
from arpo.rewards.config import Measure
from arpo.tasks.benchmark_rows import decrypted, encrypted, xbench_golds
from arpo.tasks.benchmarks import BENCHMARKS, benchmark
from arpo.tasks.data import DataConfig, load

DATA = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"
THERE = {"aime24": 30, "aime25": 30, "math500": 500, "gsm8k": 1319, "hotpotqa": 200, "2wiki": 200, "bamboogle": 125} | {
    "webwalker": 200,
    "xbench": 100,
    "simpleqa": 500,
}
ROWS = {  # as the Hub gives them
    "aime24": {"id": 60, "problem": "P?", "solution": "S", "answer": "204", "url": "u", "year": "2024"},
    "aime25": {"problem": "P?", "answer": "70", "id": "0"},
    "math500": {
        "problem": "P?",
        "solution": "S",
        "answer": "p - q",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/algebra/1",
    },
    "gsm8k": {"question": "P?", "answer": "16 - 3 = <<16-3=13>>13\n#### 1,300"},
    "math": {
        "problem": "P?",
        "level": "Level 5",
        "type": "Algebra",
        "solution": "so $\\boxed{x}$ and \\boxed{\\frac{1}{2}}.",
    },
    "hotpotqa": {
        "id": "5a8",
        "question": "P?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "context": {"title": []},
    },
    "2wiki": {"query": "P?", "answers": ["New York", "NYC"], "query_id": "q1", "subqueries": []},
    "musique": {
        "id": "2hop__1",
        "question": "P?",
        "answer": "Green",
        "answer_aliases": ["green colour"],
        "answerable": True,
    },
    "bamboogle": {"Question": "P?", "Answer": "James Madison"},
    "webwalker": {
        "question": "P?",
        "answer": "A",
        "root_url": "https://a.b",
        "info": {"difficulty_level": "hard", "domain": "game"},
    },
    "gaia": {
        "task_id": "c61d",
        "Question": "P?",
        "Level": 2,
        "Final answer": "17",
        "file_name": "",
        "Annotator Metadata": {},
    },
    "hle": {
        "id": "66e8",
        "question": "P?",
        "image": "",
        "answer": "D",
        "answer_type": "multipleChoice",
        "category": "Math",
    },
    "xbench": {"id": "1", "prompt": "P?", "answer": "161.27元", "reference_steps": "x", "canary": "key"},
    "simpleqa": {"metadata": "{}", "problem": "P?", "answer": "13"},
}


def write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def row(name: str, **changes: object) -> dict[str, object]:
    found = {**ROWS[name], **changes}
    if name == "xbench" and found.get("canary"):
        found |= {key: encrypted(str(found[key]), "key") for key in ("prompt", "answer")}
    return found


def test_entries_are_whole():
    assert len(BENCHMARKS) == 14 and set(ROWS) == set(BENCHMARKS)
    for name, entry in BENCHMARKS.items():
        assert (
            entry.name == name
            and entry.metric in get_args(Measure)
            and entry.size > 0
            and re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub)
        )
        assert entry.licence and entry.answers_are and entry.prompt.count("{question}") == 1
        assert (name in ("gaia", "hle")) == bool(entry.access)
        assert all(benchmark(other) is entry for other in (name.upper(), entry.title, *entry.files))


def test_the_page_says_what_the_entries_say():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    first, _, second = page.partition("## Files")
    lines, measures = (
        {line.split("`")[1]: line for line in part.splitlines() if line.startswith("| `")} for part in (first, second)
    )
    for name, entry in BENCHMARKS.items():
        said = [
            entry.title,
            f"`{entry.hub}`",
            f"`{entry.split}`",
            f"| {entry.size} |",
            f"| {entry.licence} |",
            f"`{entry.metric}`",
        ]
        said += [f"`{column}`" for column in (entry.level, entry.category, *entry.options.values()) if column]
        assert [word for word in said if word not in lines[name]] == [], name
        assert ("judged" in lines[name]) == entry.judged
        assert ("gated" in lines[name]) == bool(entry.access)
    assert set(get_args(Measure)) - {"auto"} == set(measures), "every measure has its line"


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' files are not here")
@pytest.mark.parametrize("name", THERE)
def test_real_files_load_whole(name):
    tasks, report = benchmark(name).load(data=DATA)
    assert len(tasks) == report.rows == THERE[name] and len({task.id for task in tasks}) == len(tasks)
    assert all(task.metadata["family"] == name and task.metadata["measure"] == benchmark(name).metric for task in tasks)
    assert benchmark(name).tasks(data=DATA, limit=3) == tasks[:3]
    again = load(DataConfig(source=f"benchmark:{name}", options={"data": str(DATA)}, limit=3))
    assert again == tasks[:3]


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_hub_become_tasks(name, tmp_path):
    write(tmp_path, name, row(name))
    (task,) = benchmark(name).tasks(data=tmp_path)
    assert "P?" in task.question and task.metadata.get("question", task.question) == "P?" and all(task.answers)
    assert not {"context", "image", "canary", "solution"} & set(task.metadata)


def test_what_rows_say():
    def made(name: str, **changes: object):
        return benchmark(name).read(
            row(name, **changes), place="x", name="x/7", source="", columns={}, mend=lambda text: text
        )

    assert made("gsm8k").answers == ("1300",) and made("math").answers == ("\\frac{1}{2}",)
    assert made("aime24").id == "aime24/60" and made("gsm8k").id == "gsm8k/7" and made("gaia").id == "gaia/c61d"
    assert made("musique").answers == ("Green", "green colour")
    assert made("gaia").metadata["level"] == "2" and "comma separated" in made("gaia").question
    assert made("webwalker").metadata == {
        "family": "webwalker",
        "measure": "f1",
        "level": "hard",
        "category": "game",
        "root_url": "https://a.b",
    }
    capitals = {
        "Question": "P?",
        "Answer": "A",
        "Root_Url": "https://a.b",
        "Info": {"Difficulty_Level": "hard", "Domain": "game"},
    }
    given = benchmark("webwalker").read(capitals, place="x", name="x/7", source="", columns={}, mend=lambda text: text)
    assert given == made("webwalker")
    assert (
        made("hle").metadata["measure"] == "choice"
        and made("hle", answer_type="exactMatch").metadata["measure"] == "short"
    )
    assert made("xbench").answers == ("161.27元",) and made("xbench").question == "P?"
    assert made("xbench", canary="").question == "P?", "a plain copy needs no key"
    for name, changes, why in (
        ("gaia", {"file_name": "a.xlsx"}, "needs the file"),
        ("gaia", {"Final answer": "?"}, "secret"),
        ("hle", {"image": "data:image/png;base64,x"}, "picture"),
        ("musique", {"answerable": False}, "not answerable"),
        ("bamboogle", {"Answer": " "}, "blank"),
    ):
        assert why in str(made(name, **changes)), (name, changes)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("aime24", {"answer": "1204"}, ["line 2", "a whole number from 0 to 999", "'1204'"]),
        ("gsm8k", {"answer": "#### many"}, ["line 2", "a number", "'many'"]),
        ("math", {"solution": "no box"}, ["line 2", "'solution'", "\\boxed{}"]),
        ("hotpotqa", {"answer": {"a": 1}}, ["line 2", "'answer'"]),
        ("bamboogle", {"Question": 7}, ["line 2", "'Question'"]),
        ("xbench", {"canary": 7}, ["line 2", "'canary'", "7"]),
    ],
)
def test_wrong_rows_are_named(name, changes, words, tmp_path):
    path = write(tmp_path, name, row(name), row(name, **changes, id=9))
    with pytest.raises(FormatError) as caught:
        benchmark(name).tasks(data=tmp_path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_text_that_does_not_decrypt_is_named(tmp_path):
    write(tmp_path, "xbench", {"prompt": "plain text", "answer": "x", "canary": "key"})
    with pytest.raises(FormatError, match=r"line 1, key 'prompt': cannot be decrypted with the row's canary"):
        benchmark("xbench").tasks(data=tmp_path)


@given(st.text(max_size=50), st.text(min_size=1, max_size=20))
def test_encryption_goes_both_ways(text, key):
    assert decrypted(encrypted(text, key), key, "here") == text


def test_encryption_as_it_is_published():
    assert decrypted("AwAVBwo=", "key", "here") == "hello", "03 00 15 07 0a is hello XOR keyke"


def test_names_inside_a_gold_are_answers_too():
    assert xbench_golds("孙悟空/悟空/齐天大圣")[1:] == ("孙悟空", "悟空", "齐天大圣")
    assert xbench_golds("萎蕤（又名玉竹）") == ("萎蕤（又名玉竹）", "萎蕤", "玉竹")
    assert xbench_golds("161.27元/克") == ("161.27元/克",) and xbench_golds("4") == ("4",)


def test_files_are_found_by_any_of_their_names(tmp_path):
    path = write(tmp_path, "DeepSearch", row("xbench"))
    assert len(benchmark("xbench").tasks(data=tmp_path)) == len(benchmark("xbench").tasks(data=path)) == 1
    csv = tmp_path / "sub" / "simple_qa_test_set.csv"
    csv.parent.mkdir()
    csv.write_text('metadata,problem,answer\n{},"Who, and\nwhen?",13\n{},Why?,14\n')
    assert [task.question for task in benchmark("SimpleQA").tasks(data=csv.parent)] == ["Who, and\nwhen?", "Why?"]
    csv.write_text("metadata,problem,answer\n{},Why?\n")
    with pytest.raises(FormatError, match="line 2: expected 3 columns"):
        benchmark("simpleqa").tasks(data=csv.parent)


def test_what_is_not_there_is_told(tmp_path):
    write(tmp_path, "gsm8k", row("gsm8k"))
    with pytest.raises(ConfigError, match=r"no file of aime24.*aime_2024.*the folder holds gsm8k\.jsonl"):
        benchmark("aime24").tasks(data=tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        benchmark("aime24").tasks(data=tmp_path / "nowhere")
    write(tmp_path, "GSM-8K", row("gsm8k"))
    with pytest.raises(ConfigError, match="several files match"):
        benchmark("gsm8k").tasks(data=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        benchmark("gsm9k")
    text = tmp_path / "notes.txt"
    text.write_text("x")
    with pytest.raises(ConfigError, match=r"not a file of questions.*\.jsonl"):
        benchmark("gsm8k").tasks(data=text)
    with pytest.raises(ConfigError, match=r"source: there is no such benchmark.*did you mean 'gsm8k'"):
        load(DataConfig(source="benchmark:gsm"))
    with pytest.raises(ConfigError, match=r"options\.data: no such folder"):
        load(DataConfig(source="benchmark:gsm8k", options={"data": str(tmp_path / "nowhere")}))
    with pytest.raises(ConfigError, match="only option is data"):
        load(DataConfig(source="benchmark:gsm8k", options={"dir": "x"}))


@pytest.mark.parametrize("name", ["gaia", "hle"])
def test_gated_sets_say_how_to_get_access(name, monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    import datasets

    def refused(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset is a gated dataset on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(
        ConfigError, match=r"gated: accept its conditions at https://huggingface\.co/datasets/.*HF_TOKEN"
    ):
        benchmark(name).tasks()


def test_the_hub_is_asked_for_the_right_part(monkeypatch):
    pytest.importorskip("datasets")
    import datasets

    asked = []

    def loaded(hub: str, **options: object) -> list[dict[str, object]]:
        asked.append((hub, options))
        return [row("gsm8k")]

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    assert [task.answers for task in benchmark("gsm8k").tasks()] == [("1300",)]
    assert asked == [("openai/gsm8k", {"split": "test", "name": "main"})]


@pytest.mark.skipif("ARPO_NETWORK" not in os.environ, reason="asks the Hub: set ARPO_NETWORK")
@pytest.mark.parametrize("name", [name for name, entry in BENCHMARKS.items() if not entry.access])
def test_the_hub_still_has_them(name):
    tasks, report = benchmark(name).load()
    assert len(tasks) + len(report.skipped) >= benchmark(name).size
