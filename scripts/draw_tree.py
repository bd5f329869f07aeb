"""Draw a rollout tree as SVG: turns, tool results, where entropy rose, which tips branched, what each leaf was worth.

    python scripts/draw_tree.py > docs/tree.svg                    # a small example, grown from made-up entropies
    python scripts/draw_tree.py runs/quickstart --step 3 --tree 1  # a recorded tree

Knows records. Refuses to know where they came from: the example is recorded like any other.
"""

import argparse
import sys
from array import array
from collections.abc import Iterator, Mapping
from html import escape
from itertools import islice
from typing import Any

from arpo.core import (
    Call,
    CallStatus,
    Expansion,
    Observation,
    Paper,
    Prompt,
    Returned,
    RolloutTree,
    RunCalls,
    SampleTurn,
    Score,
    ScoredTree,
    StepStats,
    StopReason,
    ToolCallResult,
    TreeRecord,
    Turn,
    TurnEnded,
)
from arpo.core.entropy import head_entropy
from arpo.core.place import Place, show

Rows = Mapping[Place, int]  # of leaves, from the top

ROW, BAR, LEFT, TOP, WIDTH = 50, 16, 90, 60, 880  # pixels
STYLE = """
svg { font-family: system-ui, sans-serif; }
text { fill: #1f2933; } .faint { fill: #5c6b7a; } .edge { stroke: #8a97a5; fill: none; stroke-width: 1.5; }
.turn { fill: #9cc4e4; } .tool { fill: #c9ced6; } .head { fill: #d1571f; }
.right { fill: #16926b; } .wrong { fill: #b3261e; } .tip { stroke: #1f2933; stroke-width: 1.5; fill: #ffffff; }
.branched { fill: #1f2933; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ed; } .faint { fill: #9aa5b1; } .edge { stroke: #7b8794; }
  .turn { fill: #2f6690; } .tool { fill: #5c6670; } .head { fill: #f08a4b; }
  .right { fill: #4cc38a; } .wrong { fill: #ff8a80; } .tip { stroke: #e6e9ed; fill: #14181d; }
  .branched { fill: #e6e9ed; }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a rollout tree as SVG.")
    parser.add_argument("run", nargs="?", help="a run's folder; without it the example is drawn")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--tree", type=int, default=0, help="number of the tree within the step, from 0")
    asked = parser.parse_args()
    if asked.run is None:
        print(svg(example()))
        return
    from arpo.runs.folder import RunFolder

    record = next(islice(RunFolder(asked.run).trees(asked.step), asked.tree, None), None)
    if record is None:
        sys.exit(f"{asked.run} has no tree {asked.tree} in step {asked.step}")
    print(svg(record))


# --- drawing


def svg(record: TreeRecord) -> str:
    """The picture of a record. One row a leaf; a line and the probes that follow it share the row of their first
    leaf."""
    tree = record.tree
    rows = {leaf: number for number, leaf in enumerate(tree.leaves())}
    longest = max(len(tree.branch(leaf).tokens) for leaf in rows) - len(tree.prompt.tokens)
    scale = (WIDTH - LEFT - 130) / longest
    middle, bottom = TOP + ROW * (len(rows) - 1) / 2 + BAR / 2, TOP + ROW * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img">',
        f"<title>A rollout tree with {len(rows)} leaves</title><style>{STYLE}</style>",
        _text(16, 24, _note(record, "task").get("question", tree.task)[:140], kind="plain"),
        _text(8, middle + 4, "prompt"),
    ]
    for draw in (_edge, _turn, _result, _tip):  # what is drawn later lies above
        for place in sorted(tree.turns):
            y = TOP + ROW * _row(rows, place)
            parts += draw(record, rows, place, _start(tree, place, scale), y, scale)
    for leaf, row in rows.items():
        parts += _leaf(record, leaf, TOP + ROW * row, scale)
    return "\n".join([*parts, *_legend(bottom - 14), "</svg>"])


def _edge(record: TreeRecord, rows: Rows, place: Place, x: float, y: float, scale: float) -> Iterator[str]:
    """The line from the prompt or the tip that a turn starts from, where that lies in another row."""
    y, root = y + BAR / 2, len(place) == 1
    from_x, bend = (x - 34, x - 14) if root else (x, x)
    from_y = TOP + BAR / 2 + ROW * ((len(rows) - 1) / 2 if root else _row(rows, place[:-1]))
    if from_y != y or root:
        yield f'<path class="edge" d="M{from_x:.1f} {from_y} C{bend:.1f} {from_y} {from_x:.1f} {y} {x:.1f} {y}"/>'


def _turn(record: TreeRecord, rows: Rows, place: Place, x: float, y: float, scale: float) -> Iterator[str]:
    """A bar as long as the turn's tokens; its head as dark as its entropy, with the text as a tooltip."""
    turn, k = record.tree.turns[place], record.config.head
    entropy = head_entropy(turn.entropies, k)
    text = escape(str(_note(record, "texts").get(show(place), "")))
    yield f"<g><title>{text} ({entropy:.2f} nats in its head)</title>"
    yield _bar("turn", x, y, len(turn.tokens) * scale, BAR)
    yield _bar("head", x, y, min(k, len(turn.tokens)) * scale, BAR, opacity=min(1.0, entropy / 2)) + "</g>"


def _result(record: TreeRecord, rows: Rows, place: Place, x: float, y: float, scale: float) -> Iterator[str]:
    """The tool result as a thinner bar, with the call that it answers below both."""
    if place not in record.tree.observations:
        return
    turn = record.tree.turns[place]
    written, returned = len(turn.tokens) * scale, len(record.tree.observations[place].tokens) * scale
    yield _bar("tool", x + written, y + 3, returned, BAR - 6)
    called = "; ".join(": ".join([call.name, *map(str, call.arguments.values())]) for call in turn.calls)
    room = int((written + returned) / 6)
    yield _text(x, y + BAR + 12, called if len(called) <= room else called[: room - 1] + "…", size=11)


def _tip(record: TreeRecord, rows: Rows, place: Place, x: float, y: float, scale: float) -> Iterator[str]:
    decision = record.decisions.get(place)
    if decision is None or decision.tip is None:
        return
    x = _start(record.tree, (*place, 0), scale)
    yield _dot("tip branched" if decision.decided.granted else "tip", x, y + BAR / 2)
    yield _text(x, y - 4, f"{decision.tip.rise:+.2f}", size=11, anchor="middle")


def _leaf(record: TreeRecord, leaf: Place, y: float, scale: float) -> Iterator[str]:
    turn, score = record.tree.turns.get(leaf), record.scores.get(leaf)
    x, y = _start(record.tree, leaf, scale) + (len(turn.tokens) * scale if turn else 0), y + BAR / 2
    if score is None:
        yield _text(x + 8, y + 4, record.tree.endings[leaf].replace("_", " "))
        return
    yield _dot("right" if score.accuracy >= 0.5 else "wrong", x + 12, y)
    yield _text(x + 22, y + 4, str(_note(record, "answers").get(show(leaf)) or "no answer")[:18], kind="plain")


def _legend(y: float) -> Iterator[str]:
    x: float = 16
    for kind, text in (
        ("turn", "turn of the policy"),
        ("head", "its head (stronger: less sure)"),
        ("tool", "tool result"),
    ):
        yield _bar(kind, x, y - 9, 16, 10) + _text(x + 22, y, text)
        x += 40 + 6.2 * len(text)
    for kind, text in (("tip branched", "tip that branched, with its rise"), ("tip", "tip that did not")):
        yield _dot(kind, x + 5, y - 4) + _text(x + 16, y, text)
        x += 34 + 6.2 * len(text)


def _row(rows: Rows, place: Place) -> int:
    return next(row for leaf, row in rows.items() if leaf[: len(place)] == place)


def _start(tree: RolloutTree, place: Place, scale: float) -> float:
    return LEFT + (len(tree.context(place[:-1])) - len(tree.prompt.tokens)) * scale


def _note(record: TreeRecord, name: str) -> Mapping[str, Any]:
    note = record.notes.get(name)
    return note if isinstance(note, Mapping) else {}


def _bar(kind: str, x: float, y: float, width: float, height: float, opacity: float = 1.0) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="3" '
        f'fill-opacity="{opacity:.2f}"/>'
    )


def _dot(kind: str, x: float, y: float) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _text(x: float, y: float, text: object, *, kind: str = "faint", size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(str(text))}</text>"
    )


# --- the example

QUESTION, GOLD = (
    "Which country has more people, the one whose capital is Lima or the one whose capital is Bogota?",
    "Colombia",
)
# by place: (tokens, head entropy in nats, call or answer)
LINES: Mapping[str, tuple[int, float, str]] = {
    "0": (14, 0.6, "search: Lima"),
    "0.0": (16, 1.3, "search: Bogota"),
    "0.0.0": (13, 0.5, "python: 34 < 52"),
    "0.0.0.0": (11, 0.3, "=Colombia"),
    "0.1": (18, 1.2, "search: people of Peru"),
    "0.1.0": (12, 1.1, "=Peru"),
    "0.1.1": (14, 1.0, "=Colombia"),
    "1": (16, 0.8, "search: Bogota"),
    "1.0": (12, 0.4, "=Colombia"),
    "2": (18, 0.5, "search: population"),
    "2.0": (15, 1.6, "=Peru"),
    "2.1": (17, 1.4, "search: Peru Colombia"),
    "2.1.0": (10, 0.4, "=Colombia"),
}
RESULT_TOKENS = 20


def example() -> TreeRecord:
    """Six leaves from three roots under the paper's rule: the expansion decides, the lines above only say what is
    written."""
    tree = RolloutTree(QUESTION, 1, Prompt(tokens=array("i", range(30))))
    expansion = Expansion(
        tree, leaves=6, roots=3, rule=Paper(), head=5, vocab_size=49_152, stats=StepStats(step=1), seed=0
    )
    waiting = list(expansion.start())
    answers: dict[str, str] = {}
    while waiting:
        match waiting.pop(0):
            case SampleTurn(place=place, role=role):
                tokens, entropy, said = LINES[show(place)]
                text = said.removeprefix("=")
                name, _, argument = said.partition(": ")
                calls = () if text != said else (Call(name=name, arguments={"argument": argument}),)
                values = array("f", [entropy] * tokens)
                turn = Turn(
                    place=place,
                    role=role,
                    tokens=array("i", range(tokens)),
                    logprobs=values,
                    entropies=values,
                    calls=calls,
                )
                if not calls:
                    answers[show(place)] = text
                waiting += expansion.feed(TurnEnded(turn, None if calls else StopReason.FINISHED))
            case RunCalls(place=place, calls=(call,)):
                outcome = ToolCallResult(tool=call.name, status=CallStatus.OK, text="")
                seen = Observation(place=place, tokens=array("i", range(RESULT_TOKENS)), outcomes=(outcome,))
                waiting += expansion.feed(Returned(seen))
    right = {leaf: float(answers[show(leaf)] == GOLD) for leaf in tree.leaves()}
    scores = {leaf: Score(reward=value, accuracy=value) for leaf, value in right.items()}
    notes = {
        "task": {"question": QUESTION},
        "answers": answers,
        "texts": {place: line[2] for place, line in LINES.items()},
    }
    return TreeRecord.from_expansion(expansion, ScoredTree(tree, scores), notes)


if __name__ == "__main__":
    main()
