"""The viewer: how soon a run of 32,000 trees is open and on the screen, its server's memory, and how soon a large tree is drawn.

    arpo bench viewer [--steps 500] [--trees 64] [--quick]

The run is made of a recorded step of the quickstart (benchmarks/quickstart_step.frames), whose trees stand under many names; every
task has two frames in its step's file, as a run writes them. The server is the real command in a process of its own. It is opened
twice: without an index (it goes on reading the logs while it answers), and with the index that it left. What opening means: the
answers that the first page and the table of the last step ask for, all there.

The large tree has 64 leaves and 50,000 tokens. What its server needs is measured here. `benchmarks/_viewer_page.py` measures in
Debian's Chromium, where Playwright is installed: from the address to the run page's charts, and from the tree's last byte to its
drawing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from _figures import Goal, at_most, finish

from arpo.core.branching import Never, StepStats
from arpo.core.credit import AdvantageConfig, ScoredTree, credit
from arpo.core.expansion import ExpansionConfig
from arpo.core.place import Place, show
from arpo.core.record import TreeRecord, decode, encode
from arpo.core.score import Score
from arpo.core.tree import CallStatus, Observation, Prompt, Role, RolloutTree, StopReason, ToolCallResult, Turn
from arpo.runs.folder import RunFolder

RECORDED = Path(__file__).parent / "quickstart_step.frames"
LARGE = "large"  # the id of the large tree's task
VOCABULARY = 40_000


@dataclass(frozen=True, slots=True)
class Opened:
    """Seconds from the command, and from the first request, until all answers were there; then how long the index took."""

    command_s: float
    requests_s: float
    cpu_s: float  # of the server until then, its start included: what of the seconds is its own on a busy machine
    index_s: float
    large_s: float
    large_bytes: int
    peak_mb: float  # of the server's memory, when everything had been asked for


def main() -> int:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="arpo-viewer-") as folder:
        run = Path(folder) / "run"
        _write_run(run, args.steps, args.trees)
        cache = Path(folder) / "cache"
        cold, warm = _open(run, cache, args.steps), _open(run, cache, args.steps)
        seen, why = _seen(run, cache, args.steps)
        size = sum(path.stat().st_size for path in run.rglob("*")) / 1e6
    trees = args.steps * args.trees
    figures = {
        "steps": args.steps,
        "trees": trees,
        "run_mb": size,
        "without_index": {field: getattr(cold, field) for field in Opened.__slots__},
        "with_index": {field: getattr(warm, field) for field in Opened.__slots__},
        "in_the_browser": seen,
    }
    what = f"a run of {args.steps} steps and {trees:,} trees is open"
    goals = [
        at_most(f"{what}: s from the first request, no index yet", 1.0, cold.requests_s),
        at_most(f"{what}: s from the first request, with its index", 1.0, warm.requests_s),
        at_most(f"{what}: s from the command, with its index", 1.0, warm.command_s),
        at_most("the server's memory at its most, MB", 300, max(cold.peak_mb, warm.peak_mb)),
        _in_the_browser(f"{what}: ms from the address to charts on the screen, with its index", 1000, seen.get("charts_ms"), why),
        _in_the_browser("a tree of 64 leaves and 50,000 tokens drawn after its data arrived, ms", 200, seen.get("tree_ms"), why),
    ]
    return finish("viewer", figures, goals)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--trees", type=int, default=64, help="of a step")
    parser.add_argument("--quick", action="store_true", help="20 steps of 16 trees")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.trees = 20, 16
    return args


# --- the run


def _write_run(folder: Path, steps: int, trees: int) -> None:
    recorded = list(decode(RECORDED.read_bytes()))
    frames = []
    for number in range(trees):
        record = recorded[number % len(recorded)]
        scored = _renamed(record, f"{record.tree.task}/{number}")
        frames += [encode(replace(scored, advantages={}, credit={})), encode(scored)]
    content = b"".join(frames)
    measured = {f"group{k % 12}/metric{k}": 0.1 * k for k in range(140)}  # as many as a run writes
    with RunFolder.create(folder, "name: large\nseed: 0\nrollout: {leaves: 8, rule: {rule: paper}}\n", {"cpus": 1}) as run:
        for step in range(1, steps + 1):
            run.append_metrics(step, {**measured, "reward/leaves": step / steps})
            run.events_path(step).write_bytes(content)
        run.append_tree(steps, large_tree())
        run.write_summary(status="finished")


def _renamed(record: TreeRecord, task: str) -> TreeRecord:
    tree = RolloutTree(task, record.tree.step, record.tree.prompt)
    tree.turns, tree.observations, tree.endings = record.tree.turns, record.tree.observations, record.tree.endings
    return replace(record, tree=tree, schema=2)


def large_tree(leaves: int = 64, tokens: int = 50_000) -> TreeRecord:
    """A tree of 8 roots, each with a trunk of three results, and siblings at its tips; every segment of about the same length."""
    random = Random("large")
    places: list[Place] = []  # turns in the order in which they grow
    for root in range(8):
        line: Place = (root,)
        for _ in range(3):
            places.append(line)
            line = (*line, 0)
        places.append(line)
    tips = [place for place in places if len(place) < 4]
    siblings = dict.fromkeys(tips, 1)
    while len(places) - len(tips) < leaves:
        tip = tips[len(places) % len(tips)]
        places.append((*tip, siblings[tip]))
        siblings[tip] += 1
    length = (tokens - 200) // (len(places) + len(tips))
    tree = RolloutTree(LARGE, 1, Prompt(tokens=_drawn_tokens(random, 200)))
    for place in sorted(places):
        role = Role.ROOT if len(place) == 1 else Role.SIBLING if place[-1] else Role.PROBE
        entropies = array("f", (random.expovariate(2) for _ in range(length)))
        logprobs = array("f", (-random.expovariate(2) for _ in range(length)))
        tree.grow(Turn(place=place, role=role, tokens=_drawn_tokens(random, length), logprobs=logprobs, entropies=entropies))
        if place in siblings:
            outcome = ToolCallResult(tool="search", status=CallStatus.OK, text="what was found " * (length // 3), seconds=0.1)
            tree.grow(Observation(place=place, tokens=_drawn_tokens(random, length), outcomes=(outcome,)))
        else:
            tree.end(place, StopReason.FINISHED)
    scores = {leaf: Score(reward=(r := float(random.random() < 0.5)), accuracy=r, parts={"answer": r}) for leaf in tree.leaves()}
    (credited,) = credit([ScoredTree(tree, scores)], AdvantageConfig())
    task = {"id": LARGE, "source": "", "question": "a large tree", "answers": ["yes"], "family": "large"}
    texts = {show(place): "words that the policy wrote " * (length // 5) for place in tree.turns}
    config = ExpansionConfig(leaves=leaves, roots=8, rule=Never(), head=10, vocab_size=VOCABULARY, stats=StepStats(step=1), seed=0)
    return TreeRecord(
        config=config,
        tree=tree,
        events=(),
        decisions={},
        scores=scores,
        advantages=credited.advantages,
        credit=credited.credit,
        notes={"task": task, "texts": texts, "prompt": "a prompt " * 100, "answers": {}, "failures": [], "discarded": {}},
    )


def _drawn_tokens(random: Random, number: int) -> array:
    return array("i", (random.randrange(VOCABULARY) for _ in range(number)))


# --- the server


@contextmanager
def serving(run: Path, cache: Path) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """The command in a process of its own: the process, its address without the token, and the token."""
    command = [sys.executable, "-m", "arpo", "view", str(run), "--no-open", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "ARPO_CACHE": str(cache)})
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        base, _, token = address.partition("/?token=")
        yield process, base, token
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _open(run: Path, cache: Path, steps: int) -> Opened:
    start = time.perf_counter()
    with serving(run, cache) as (process, base, token):
        first = time.perf_counter()
        _get(base, token, "/")
        asked = ["", "/run", "/run/metrics", f"/run/trees?step={steps}"]
        for path in asked:
            _get(base, token, f"/api/runs{path}")
        there, cpu_s = time.perf_counter(), _cpu_s(process.pid)
        while (indexed := _json(base, token, "/api/runs/run/trees?limit=1")["indexed"])["steps"] < indexed["of"]:
            time.sleep(1.0)  # a question makes the indexing wait for an instant
        whole = time.perf_counter()
        for path in ("/run/entropy", "/run/trees?sort=-reward_mean&helped=1&limit=1000", "/run/trees?q=country&limit=1000"):
            _get(base, token, f"/api/runs{path}")
        before = time.perf_counter()
        large = _get(base, token, f"/api/runs/run/tree?{urllib.parse.urlencode({'step': steps, 'task': LARGE})}")
        after = time.perf_counter()
        peak = _peak_mb(process.pid)
    return Opened(there - start, there - first, cpu_s, whole - there, after - before, len(large), peak)


def _get(base: str, token: str, path: str) -> bytes:
    request = urllib.request.Request(base + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def _json(base: str, token: str, path: str) -> dict:
    return dict(json.loads(_get(base, token, path)))


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; NaN where the system does not say."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return float("nan")
    fields = stat.read_text().rpartition(")")[2].split()  # from the state on, the third value
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    """The most memory that a process has had resident; NaN where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


# --- the page


def _seen(run: Path, cache: Path, steps: int) -> tuple[dict[str, float], str]:
    """Milliseconds that a browser needs for the run page and for the large tree; or nothing, and why."""
    try:
        from _viewer_page import charts_ms, drawn_ms
    except ImportError as error:
        return {}, f"{error.name or error} is missing"
    if shutil.which("chromium") is None:
        return {}, "chromium is missing"
    with serving(run, cache) as (_, base, token):
        address = f"{base}/?token={token}"
        return {"charts_ms": charts_ms(address), "tree_ms": drawn_ms(address, run="run", step=steps, task=LARGE)}, ""


def _in_the_browser(what: str, most: float, value: float | None, why: str) -> Goal:
    return Goal(f"{what} ({why})", f"<= {most}", None, False) if value is None else at_most(what, most, value)


if __name__ == "__main__":
    sys.exit(main())
