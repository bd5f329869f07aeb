"""The search tool: the right passages, in a fixed order, from wherever documents come."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError, FormatError
from arpo.search.documents import read_documents
from arpo.search.index import Index
from arpo.search.passages import Passage
from arpo.search.words import words
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.search import SearchTool

DOCUMENTS = [
    {"title": "Peru", "text": "Peru is a country. Its capital is Lima."},
    {"title": "Lima", "text": "A city by the sea."},
    {"title": "São Paulo", "text": "The largest city of Brazil, with 12,300,000 people."},
]

WORDS = st.sampled_from(["red", "green", "blue", "dark", "light"])


def task(**more):
    return Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",), **more)


async def find(tool, query, **more):
    return await run_call(
        [tool], Call(name="search", arguments={"query": query}), CallContext(task=task(**more), deadline_s=5, seed=0)
    )


async def test_best_passages_come_first_one_a_line(capsys):
    done = await find(SearchTool(DOCUMENTS), "What is the capital of Peru?")
    assert done.status is CallStatus.OK and done.text.splitlines()[0] == "Peru is a country. Its capital is Lima."
    assert (await find(SearchTool(DOCUMENTS), "sao paulo")).text.startswith("São Paulo: The largest city")
    assert (await find(SearchTool(DOCUMENTS, k=1), "cities")).text.count("\n") == 0
    assert capsys.readouterr() == ("", "")


async def test_nothing_found_is_a_result():
    for query in ("zebra", "the of", "?!"):
        done = await find(SearchTool(DOCUMENTS), query)
        assert (done.status, done.text) == (CallStatus.OK, "No results.")
    assert (await find(SearchTool(), "Peru")).text == "No results."


async def test_a_tasks_own_documents_are_searched_instead():
    tool = SearchTool(DOCUMENTS)
    own = ({"title": "Peru", "text": "A town in Indiana."},)
    assert "Indiana" in (await find(tool, "Peru", documents=own)).text
    assert "Lima" in (await find(tool, "Peru")).text
    other = ({"title": "Peru", "text": "A city in Illinois."},)
    assert "Illinois" in (await find(tool, "Peru", documents=other)).text


def test_long_passages_are_cut_at_a_word():
    tool = SearchTool([{"title": "A", "text": "word " * 100}], passage_chars=50)
    line = tool.search("word").text
    assert len(line) <= 50 and line.endswith("word…")


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.lists(WORDS, min_size=1, max_size=6).map(" ".join),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["red", "green blue", "dark red light", "none"]),
    st.integers(1, 9),
)
def test_results_are_the_sorted_scores_and_ties_keep_the_documents_order(texts, query, k):
    index = Index([Passage("", text) for text in texts])
    found = index.find(query, k)
    everything = index.find(query, len(texts))
    scored = {id(passage): score for passage, score in everything}
    order = sorted(
        (passage for passage in index.passages if id(passage) in scored),
        key=lambda passage: (-scored[id(passage)], [id(p) for p in index.passages].index(id(passage))),
    )
    assert [id(passage) for passage, _ in found] == [id(passage) for passage in order[:k]]
    assert all(set(words(passage.text)) & set(words(query)) for passage, _ in found)


def test_documents_come_from_lists_folders_and_jsonl(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "lima_city.md").write_text("First part.\n\n" + "x" * 1500 + "\n\nLast.")
    (tmp_path / "notes" / "skip.bin").write_bytes(b"\x00")
    folder = read_documents(tmp_path / "notes")
    assert [passage.title for passage in folder] == ["lima city"] * 3
    lines = [{"title": "A", "text": "one"}, {"contents": '"B"\ntwo'}]
    (tmp_path / "corpus.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert read_documents(str(tmp_path / "corpus.jsonl")) == [Passage("A", "one"), Passage("B", "two")]


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        SearchTool(str(tmp_path / "nowhere"))
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"txt": "y"}')
    with pytest.raises(FormatError, match=r"bad\.jsonl:2.*txt"):
        SearchTool(str(tmp_path / "bad.jsonl"))
    (tmp_path / "worse.jsonl").write_text("nope")
    with pytest.raises(FormatError, match=r"worse\.jsonl:1"):
        SearchTool(str(tmp_path / "worse.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no documents"):
        SearchTool(tmp_path / "empty")


def test_the_atlas_is_searchable():
    tool = SearchTool("atlas")
    assert len(tool.index.passages) > 1_000
    assert "Lima" in tool.search("capital of Peru").text
