"""An index on disk finds what one in memory finds; passages come from every kind of file, with title, source and
snippet."""

import contextlib
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.answer_text import HAN
from arpo.errors import ConfigError, FormatError
from arpo.search.documents import read_documents, read_path
from arpo.search.index import Index, build_index, fuse, is_index
from arpo.search.lexical import Lexical
from arpo.search.passages import Passage, cut, from_mappings
from arpo.search.snippet import snippet
from arpo.search.words import folded, words
from arpo.tools.search import SearchTool

WORDS = st.sampled_from(["red", "green", "blue", "dark", "light", "Größe", "São", "12,300", "cities", "the"])
TEXTS = st.lists(st.lists(WORDS, max_size=8).map(" ".join), min_size=1, max_size=12)
PERU = [
    Passage("Peru", "Peru is a country. Its capital is Lima.", "peru.html"),
    Passage("Lima", "A city by the sea."),
    Passage("São Paulo", "The largest city of Brazil."),
]


# --- words and scores


def slow_words(text: str) -> list[str]:
    """Words without the short cut for plain text, character by character."""
    from arpo.answer_text import STOPWORDS
    from arpo.search.words import WORD, _singular

    folded = unicodedata.normalize("NFD", text.casefold())
    kept = unicodedata.normalize("NFC", "".join(c for c in folded if not "\u0300" <= c <= "\u036f"))
    found = []
    for word in WORD.findall(kept):
        for is_han, run in itertools.groupby(word, lambda c: re.match(f"[{HAN}]", c) is not None):
            part = "".join(run)
            found += map("".join, itertools.pairwise(part)) if is_han and len(part) > 1 else [part]
    return [_singular(word) for word in found if word not in STOPWORDS]


@given(st.text() | st.text("中国がギab 1,") | TEXTS.map(" ".join) | st.text(st.characters(codec="ascii")))
def test_words_of_plain_text_are_those_of_any_text(text: str) -> None:
    assert words(text) == slow_words(text)
    assert folded(folded(text)) == folded(text) or not text.isascii()


def bm25(texts: list[str], query: str) -> list[float]:
    """Lucene's BM25 by the formula, with k1 = 1.5 and b = 0.75 (bm25s's defaults)."""
    rows = [Counter(words(text)) for text in texts]
    mean = sum(sum(row.values()) for row in rows) / len(rows)
    scores = [0.0] * len(rows)
    for word in words(query):
        having = sum(word in row for row in rows)
        idf = math.log(1 + (len(rows) - having + 0.5) / (having + 0.5))
        for number, row in enumerate(rows):
            if row[word]:
                scores[number] += idf * row[word] / (1.5 * (1 - 0.75 + 0.75 * sum(row.values()) / mean) + row[word])
    return scores


@settings(deadline=None, max_examples=30)
@given(TEXTS, st.lists(WORDS, min_size=1, max_size=4).map(" ".join), st.integers(1, 15))
def test_scores_are_the_formulas(texts: list[str], query: str, k: int) -> None:
    expected = bm25(texts, query)
    found = Lexical.build(texts).find(query, k)
    assert len(found) == min(k, sum(score > 0 for score in expected))
    for number, score in found:
        assert score == pytest.approx(expected[number], rel=1e-4)
    assert [number for number, _ in found] == [
        number for _, number in sorted((-score, number) for number, score in found)
    ]


@settings(deadline=None, max_examples=25)
@given(TEXTS, st.lists(WORDS, min_size=1, max_size=4).map(" ".join))
def test_on_disk_as_in_memory(tmp_path_factory: pytest.TempPathFactory, texts: list[str], query: str) -> None:
    folder = tmp_path_factory.mktemp("index") / "i"
    passages = [Passage(f"T{number}", text, f"s{number}") for number, text in enumerate(texts)]
    build_index(passages, folder)
    memory, disk = Index(passages), Index.open(folder)
    assert list(disk.passages) == passages
    for k in (1, 3, 50):
        assert disk.find(query, k) == memory.find(query, k)


# --- the folder


def test_the_atlas_on_disk_gives_what_the_quickstart_finds(tmp_path: Path) -> None:
    build_index(read_documents("atlas"), tmp_path / "atlas")
    memory, disk = SearchTool("atlas"), SearchTool(str(tmp_path / "atlas"))
    for query in ("capital of Peru", "Which river is longest?", "São Tomé", "chemical element 79", "zebra", "?!"):
        assert disk.search(query).text == memory.search(query).text


def test_an_index_says_what_it_holds_and_is_built_whole_or_not_at_all(tmp_path: Path) -> None:
    about = build_index(PERU, tmp_path / "i")
    assert about["passages"] == 3 and is_index(tmp_path / "i")
    with pytest.raises(ConfigError, match="already"):
        build_index(PERU, tmp_path / "i")

    def breaks():  # type: ignore[no-untyped-def]
        yield PERU[0]
        raise FormatError("line 2 is broken")

    with pytest.raises(FormatError):
        build_index(breaks(), tmp_path / "j")
    with pytest.raises(ConfigError, match="no documents"):
        build_index([], tmp_path / "j")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i"]


def test_words_that_nobody_can_find_are_no_obstacle(tmp_path: Path) -> None:
    build_index([Passage("", "the of ?!"), Passage("", "")], tmp_path / "i")
    assert Index.open(tmp_path / "i").find("the", 3) == []


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    build_index(PERU, folder)
    with pytest.raises(ConfigError, match="arpo index"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no vectors"):
        Index.open(folder, mode="hybrid")
    with pytest.raises(ConfigError, match="did you mean 'lexical'"):
        Index.open(folder, mode="lexcal")
    whole = (folder / "scores.npy").read_bytes()
    (folder / "scores.npy").write_bytes(whole[:-4])
    with pytest.raises(FormatError, match=r"scores\.npy"):
        Index.open(folder)
    (folder / "scores.npy").write_bytes(whole)
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**about, "words": "words-0"}))
    with pytest.raises(FormatError, match="build it again"):
        Index.open(folder)
    (folder / "index.json").write_text("[]")
    with pytest.raises(FormatError, match=r"index\.json"):
        Index.open(folder)


@pytest.mark.parametrize("name", ["scores.npy", "rows.npy", "starts.npy", "words.npy", "passages.npy", "words.txt"])
def test_an_index_of_others_is_read_or_named(tmp_path: Path, name: str) -> None:
    """Its maker says what its files hold: what a manifest without a list of files does not check."""
    build_index(PERU, tmp_path / "i")
    file, manifest = tmp_path / "i" / name, tmp_path / "i" / "index.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {}}))
    numbers, head = np.asarray([-9, 1 << 30, 7], np.int32), b"\x93NUMPY\x01\x00"
    contents: list[bytes] = [b"", b"x" * 99, head + b"\xff\xff" + b"(" * 65535, pickle.dumps(numbers, 2)]
    if name.endswith(".npy"):
        for array in (
            numbers,
            np.resize(np.load(file), 50),
            np.load(file) * 0 + 999,
            np.asarray([{}]),
            np.zeros((2, 2)),
        ):
            np.save(tmp_path / "array.npy", array)
            contents.append((tmp_path / "array.npy").read_bytes())
    for content in contents:
        file.write_bytes(content)
        with contextlib.suppress(FormatError):
            assert len(Index.open(tmp_path / "i").find("capital of Peru", 2)) <= 2
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(FormatError, match=rf"{name} is not a file"):
        Index.open(tmp_path / "i")


def test_a_damaged_passage_is_named(tmp_path: Path) -> None:
    build_index(PERU, tmp_path / "i")
    lines = tmp_path / "i" / "passages.jsonl"
    whole = lines.read_bytes()
    for damage in (b"[" * 40, b'["", 3]' + b" " * 33, b'{"a": 1}' + b" " * 32, b"\xff" * 40):
        lines.write_bytes(damage + whole[40:])
        with pytest.raises(FormatError, match=r"passages\.jsonl: passage 0 is damaged"):
            Index.open(tmp_path / "i").find("Peru", 1)


def test_threads_search_one_index(tmp_path: Path) -> None:
    build_index(read_documents("atlas"), tmp_path / "i")
    index = Index.open(tmp_path / "i")
    queries = ["capital of Peru", "river in Africa", "element discovered 1898", "largest city"] * 5
    expected = [index.find(query, 3) for query in queries]
    found: list[list[object]] = []
    threads = [
        threading.Thread(target=lambda: found.append([index.find(query, 3) for query in queries])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# --- documents


def test_every_kind_of_file_becomes_passages(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    from pages_for_tests import pdf

    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a_text.txt").write_text("First.\n\nSecond.")
    (folder / "b.html").write_text(
        "<html><head><title>The Andes</title></head><body><p>Long mountains in the west of South "
        "America.</p></body></html>"
    )
    (folder / "c.pdf").write_bytes(pdf("The Rimac springs at Ticlio.", "Rivers"))
    (folder / "d.jsonl").write_text('{"title": "D", "contents": "delta", "url": "https://d.example"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"title": ["E"], "text": ["epsilon"]}), folder / "sub" / "e.parquet")
    (folder / "f.bin").write_bytes(b"\x00")
    found = {(passage.title, passage.source): passage.text for passage in read_documents(folder)}
    assert found == {
        ("a text", "a_text.txt"): "First. Second.",
        ("The Andes", "b.html"): "Long mountains in the west of South America.",
        ("Rivers", "c.pdf, page 1"): "The Rimac springs at Ticlio.",
        ("D", "https://d.example"): "delta",
        ("E", ""): "epsilon",
    }
    for name, title in (("b.html", "The Andes"), ("c.pdf", "Rivers"), ("sub/e.parquet", "E")):
        assert read_documents(folder / name)[0].title == title


def test_bad_documents_are_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for name, content, word in [
        ("a.parquet", b"not parquet", r"a\.parquet"),
        ("b.jsonl", b'{"text": "x"}\n[1]\n', r"b\.jsonl:2"),
        ("c.jsonl", b'{"text": "\xff"}\n', r"c\.jsonl.*UTF-8"),
        ("d.pdf", b"%PDF-1.4 nothing", r"d\.pdf"),
        ("e.jsonl", b"[" * 200_000, r"e\.jsonl:1"),
        ("f.jsonl", b'{"text": null}', r"f\.jsonl:1.*text \(null\)"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=word):
            list(read_path(tmp_path / name))
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "e.parquet")
    with pytest.raises(FormatError, match=r"e\.parquet: row 1.*has n \(int\)"):
        list(read_path(tmp_path / "e.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["lots of text"]}), tmp_path / "g.parquet")
    whole = (tmp_path / "g.parquet").read_bytes()
    (tmp_path / "g.parquet").write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(FormatError, match=r"g\.parquet"):
        list(read_path(tmp_path / "g.parquet"))


def test_marks_at_the_beginning_of_a_file_say_how_it_is_written(tmp_path: Path) -> None:
    for name, content in [
        ("a.jsonl", b'\xef\xbb\xbf{"text": "gr\xc3\xbc\xc3\x9fe"}'),
        ("b.txt", "\ufeffgrüße".encode()),
        ("c.txt", "grüße".encode("utf-16")),
    ]:
        (tmp_path / name).write_bytes(content)
        assert [passage.text for passage in read_path(tmp_path / name)] == ["grüße"]


def test_an_index_beside_its_documents_and_hidden_folders_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Lima is in Peru.")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "b.txt").write_text("not meant")
    for name in ("index", "second"):
        assert build_index(read_path(tmp_path), tmp_path / name)["passages"] == 1


def test_half_a_character_in_a_corpus_can_still_be_answered_with() -> None:
    (passage,) = from_mappings(
        [json.loads(r'{"text": "Lima \ud800 Peru", "title": "a\udfff", "source": "b\ud800"}')], "x"
    )
    assert passage == Passage("a?", "Lima ? Peru", "b?")


@given(st.lists(st.text(st.sampled_from("ab .!\n"), max_size=80), max_size=12), st.integers(10, 60))
def test_cutting_loses_no_word_and_keeps_the_size(paragraphs: list[str], chars: int) -> None:
    text = "\n\n".join(paragraphs)
    pieces = cut(text, chars=chars)
    assert " ".join(pieces).split() == text.split()
    assert all(len(piece) <= chars or " " not in piece for piece in pieces)


def test_a_passage_keeps_where_it_stands() -> None:
    assert from_mappings([{"text": "t", "title": "A", "url": "u"}], "x") == [Passage("A", "t", "u")]
    result = SearchTool([{"title": "Lima", "text": "A city by the sea.", "source": "lima.html"}]).search("sea")
    assert result.metadata == {"titles": ["Lima"], "sources": ["lima.html"]} and not result.empty
    assert SearchTool([{"text": "x"}]).search("zebra").empty


# --- snippets


@given(
    st.lists(st.sampled_from(["red", "green", "blue", "a", "longerword"]), min_size=1, max_size=60),
    st.sampled_from(["red", "blue green", "zebra"]),
)
def test_a_snippet_is_a_part_that_fits_and_hits_where_the_text_does(tokens: list[str], query: str) -> None:
    text, chars = " ".join(tokens), 40
    shown = snippet(text, query, chars)
    assert len(shown) <= chars and shown.strip("…") in text
    assert shown == text or len(text) > chars
    if set(words(query)) & set(words(text)):
        assert set(words(query)) & set(words(shown))


def test_a_snippet_shows_the_window_with_most_of_the_query() -> None:
    text = "Lima is old. " + "filler " * 50 + "The capital Lima has a port. " + "more " * 50
    shown = snippet(text, "capital Lima port", 60)
    assert "capital Lima has a port" in shown and shown.startswith("…") and shown.endswith("…") and len(shown) <= 60


# --- fusion


def test_fusion_is_the_papers_sum() -> None:
    fused = dict(fuse([[7, 3, 5], [3, 9]], 10))
    assert (
        fused[3] == pytest.approx(1 / 62 + 1 / 61) and fused[7] == pytest.approx(1 / 61) and set(fused) == {3, 5, 7, 9}
    )
    assert [number for number, _ in fuse([[1, 2], [2, 1]], 1)] == [1]


# --- the command


def arpo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arpo", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )


def test_the_command_builds_an_index_and_tells_mistakes(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"title": "Lima", "text": "A city."}\n')
    done = arpo("index", "d.jsonl", "out", folder=tmp_path)
    assert done.returncode == 0 and "1 passages, 2 words" in done.stdout and "documents: out" in done.stdout
    assert SearchTool(tmp_path / "out").search("city").text == "Lima: A city."
    for arguments, word in [
        (("index", "d.jsonl", "out"), "already"),
        (("index", "nowhere", "x"), "no such file"),
        (("serve-search", "nowhere"), "there is no index"),
    ]:
        wrong = arpo(*arguments, folder=tmp_path)
        assert wrong.returncode == 2 and wrong.stderr.startswith("error:") and word in wrong.stderr, wrong.stderr


def test_what_cannot_be_read_is_named_or_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Lima is the capital of Peru.")
    (folder / "b.pdf").write_text("%PDF-broken")
    with pytest.raises(FormatError, match=r"b\.pdf: not a PDF"):
        list(read_path(folder))
    left: list[FormatError] = []
    assert [passage.text for passage in read_path(folder, left.append)] == ["Lima is the capital of Peru."]
    assert len(left) == 1 and "b.pdf" in str(left[0])


# --- Chinese and Japanese


@pytest.mark.parametrize(
    ("query", "found"),
    [("中国的首都是哪里？", "北京"), ("富士山の高さ", "富士山"), ("长江有多长", "长江"), ("东京塔 tower", "东京塔")],
)
def test_what_is_written_without_spaces_is_found(query: str, found: str) -> None:
    texts = {
        "北京": "北京是中华人民共和国的首都，中国的政治中心。",
        "富士山": "富士山は日本で最も高い山で、高さは3776メートルである。",
        "长江": "长江全长约6300公里，是亚洲最长的河流。",
        "东京塔": "东京塔（Tokyo Tower）于1958年建成。",
        "巴黎": "巴黎是法国的首都。",
    }
    index = Index([Passage(title, text) for title, text in texts.items()])
    assert index.find(query, 1)[0][0].title == found


@given(text=st.text(alphabet="中国首都北京がギ山ab 12，。", max_size=40))
def test_pairs_of_neighbours_are_the_words_of_what_has_no_spaces(text: str) -> None:
    has = words(text)
    for at in range(len(text) - 1):
        if all(re.match(f"[{HAN}]", character) for character in text[at : at + 2]):
            assert text[at : at + 2] in has
    assert all(word in words(text + "。" + text) for word in has)


def test_a_snippet_of_a_text_without_spaces_is_around_the_hit() -> None:
    text = "天" * 500 + "长江全长约六千三百公里。" + "地" * 500
    cut = snippet(text, "长江有多长", 60)
    assert "长江全长" in cut and len(cut) <= 60 and cut[0] == cut[-1] == "…"


def test_a_long_chinese_paragraph_is_cut_between_sentences() -> None:
    pieces = cut("长江是亚洲最长的河流。" * 60, chars=100)
    assert len(pieces) > 6 and all(len(piece) <= 110 and piece.endswith("。") for piece in pieces)
