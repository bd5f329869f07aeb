"""A tree in a terminal, recorded (`arpo show`) or just grown (`--try`). Without colours it says the same in words.

Knows rich and the JSON that also draws the page's tree (Tree in api.ts). Text from a model or a tool is made safe:
characters that would control the terminal, or change the direction of writing, are spelled out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from arpo.display.terminal import Console
from arpo.terminal_safe import terminal_safe

MOST_CHARS = 240  # of a segment
Answer = Mapping[str, Any]


def print_tree(console: Console, answer: Answer, *, most_chars: int = MOST_CHARS) -> None:
    """Print question and rule, then every segment below its parent with decision, ending and reward."""
    task, growth = answer["task"], answer["growth"]
    rule = ", ".join(f"{key} {value}" for key, value in answer["rule"].items() if key != "rule")
    say(console, f"{task['id']}, step {answer['step']}", "bold")
    say(console, f"{_short(task['question'], 4 * most_chars)}")
    say(console, f"right answers: {' or '.join(map(repr, task['answers'])) or 'none given'}")
    roots = "roots by pilot" if growth["roots"] is None else f"{growth['roots']} roots"
    say(
        console,
        f"{growth['leaves']} leaves from {roots}, rule {answer['rule'].get('rule')}{f' ({rule})' if rule else ''}",
    )
    print_segments(console, answer, most_chars=most_chars)
    for failure in answer["failures"]:
        say(console, failure, "red")


def print_segments(console: Console, answer: Answer, *, most_chars: int = MOST_CHARS) -> None:
    """Every segment under its parent with decision, ending and reward."""
    leaves = {leaf["node"]: leaf for leaf in answer["leaves"]}
    shown: dict[str, Tree] = {}
    for node in answer["nodes"]:
        text = _node(node, leaves.get(node["id"]), most_chars)
        if node["parent"] is None:
            shown[node["id"]] = Tree(text, guide_style="dim")
        elif node["kind"] == "observation":  # one line of writing: shown with its turn
            parent = shown[node["parent"]]
            parent.label.append_text(text)  # type: ignore[union-attr]
            shown[node["id"]] = parent
        else:
            shown[node["id"]] = shown[node["parent"]].add(text)
    console.print(shown["-"])


def print_table(console: Console, rows: Sequence[Answer], title: str) -> None:
    """List the trees of a step, from which to choose a task."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0), expand=True)
    columns = [name for name, least in _COLUMNS.items() if console.width >= least]
    for name in columns:
        left = name in ("task", "question", "helped")
        rest: dict[str, Any] = (
            {"ratio": 1, "overflow": "ellipsis"} if name == columns[-1] else {}
        )  # it takes the remaining width
        table.add_column(name, justify="left" if left else "right", no_wrap=True, **rest)
    for row in rows:
        table.add_row(*(Text(_cell(row, name)) for name in columns))
    console.print(table)


_LEAST_WIDTHS = (0, 80, 0, 80, 66, 66, 40, 40, 90)  # minimum width of a terminal, in characters, that shows a column
_COLUMNS = dict(
    zip(
        ("task", "leaves", "reward", "best", "calls", "errors", "branches", "helped", "question"),
        _LEAST_WIDTHS,
        strict=True,
    )
)
_HELPED = {1: "yes", 0: "equal", -1: "hurt", None: "-"}


def _cell(row: Answer, name: str) -> str:
    match name:
        case "task":
            return terminal_safe(row["task"])
        case "question":
            return _short(row["question"], 80)
        case "helped":
            return _HELPED[row["helped"]]
        case "reward" | "best":
            value = row["reward_mean" if name == "reward" else "reward_max"]
            return "-" if value is None else f"{value:.2f}"
        case _:
            return str(row[name])


def _node(node: Answer, leaf: Answer | None, most_chars: int) -> Text:
    text = Text()
    if node["kind"] == "prompt":
        return Text(f"prompt, {node['tokens']} tokens", style="bold")
    if node["kind"] == "turn":
        head = "" if node["head"] is None else f", head {node['head']:.2f} nats"
        text.append(f"{node['place']} {node['role']}", style="bold cyan")
        text.append(f"  {node['tokens']} tokens{head}\n", style="dim")
        text.append(_short(node["text"], most_chars))
    else:
        text.append("\n" + _short(node["text"], most_chars), style="dim")
        for outcome in node["outcomes"]:
            if outcome["status"] != "ok" or outcome["cut"]:
                cut = ", cut" if outcome["cut"] else ""
                text.append(f"\n{terminal_safe(outcome['tool'])}: {outcome['status']}{cut}", style="yellow")
        if decision := node["decision"]:
            text.append("\n" + decision["said"], style="magenta" if decision["granted"] else "dim magenta")
            text.append_text(_paid_off(decision))
    if leaf is not None:
        text.append("\n")
        text.append_text(_ending(leaf))
    return text


def _paid_off(decision: Answer) -> Text:
    """The rewards of the siblings' lines next to the probe's; empty if there is nothing to compare."""
    known = [reward for reward in decision["siblings"] if reward is not None]
    if decision["probe"] is None or not known:
        return Text()
    better, worse = max(known) > decision["probe"], min(known) < decision["probe"]
    said = "helped" if better else "hurt" if worse else "no difference"
    rewards = ", ".join(f"{reward:g}" for reward in known)
    style = "green" if better else "red" if worse else "dim"
    line = "its line" if len(known) == 1 else "their lines"
    return Text(f"; {line} ended with {rewards}, the probe's with {decision['probe']:g}: {said}", style=style)


def _ending(leaf: Answer) -> Text:
    ending = leaf["ending"].replace("_", " ")
    if leaf["reward"] is None:
        return Text(f"{ending}: no reward", style="red")
    style = "green" if (leaf["accuracy"] or 0) >= 0.5 else "yellow" if leaf["reward"] >= 0 else "red"
    advantage = "" if leaf["advantage"] is None else f", advantage {leaf['advantage']:+.2f}"
    answer = "" if leaf["answer"] is None else f", answer {_short(leaf['answer'], 80)!r}"
    return Text(f"{ending}, reward {leaf['reward']:g}{advantage}{answer}", style=style)


def _short(text: str, most: int) -> str:
    line = terminal_safe(text.strip().replace("\n", "⏎"))
    return line if len(line) <= most else line[: most - 1] + "…"


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, without markup or highlighting."""
    console.print(Text(text, style=style), highlight=False)
