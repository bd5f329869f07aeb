"""The figures of a report: which metrics are drawn together, and what has to be said about them.

Knows the names of metrics: those of arpo.training.metrics and `train/NAME` (what an update reports). Refuses to know
files and how a chart is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arpo.display.charts import Line, Panel
from arpo.evaluation.results import BenchmarkResult
from arpo.runs.folder import VALIDATION

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    name: str  # of the file
    title: str
    panels: Sequence[Panel]
    caption: str = ""
    columns: int = 2


def figures(history: History, results: Mapping[str, BenchmarkResult]) -> list[Figure]:
    """The four figures of a report; `arpo view` and trackers show all metrics. What no step has is left out."""
    return [_reward(history, results), _tools(history), _branching(history), _learner(history)]


def lines(history: History, names: Mapping[str, str], **style: Any) -> list[Line]:
    """One line for each metric that some step has; `names` maps metrics to labels."""
    steps = [m["step"] for m in history]
    present = {name for m in history for name, value in m.items() if value is not None}
    return [
        Line(label=label, x=steps, y=[m.get(n) for m in history], **style) for n, label in names.items() if n in present
    ]


def prefixed(history: History, prefix: str) -> dict[str, str]:
    """The metrics under a prefix, with labels, in the order in which they first appear."""
    found = dict.fromkeys(key for m in history for key in m if key.startswith(prefix))
    return {key: key.removeprefix(prefix).replace("_", " ") for key in found}


def _reward(history: History, results: Mapping[str, BenchmarkResult]) -> Figure:
    return Figure(
        name="reward",
        title="Reward and accuracy",
        panels=[
            Panel(title="Reward", lines=_three_means(history, "reward")),
            Panel(title="Accuracy", lines=[*_three_means(history, "accuracy"), *_validation(results)], percent=True),
        ],
        caption="Probe lines are plain samples of the policy and the series to compare between methods. Leaves "
        "over-weight paths where the policy was unsure; the fork-weighted mean is biased too.",
    )


def _three_means(history: History, name: str) -> list[Line]:
    return [
        *lines(history, {f"{name}/probe_lines": "probe lines"}),
        *lines(history, {f"{name}/leaves": "all leaves"}, light=True),
        *lines(history, {f"{name}/fork_weighted": "fork-weighted"}, light=True, dashed=True),
    ]


def _validation(results: Mapping[str, BenchmarkResult]) -> list[Line]:
    found = sorted(
        ((step, r.accuracy) for name, r in results.items() if (step := _step_of(name)) is not None), key=lambda f: f[0]
    )
    if not found:
        return []
    steps, estimates = [step for step, _ in found], [estimate for _, estimate in found]
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    return [Line(label="validation", x=steps, y=[e.mean for e in estimates], low=low, high=high)]


def _step_of(name: str) -> int | None:
    """The step of a validation during training: the number that its name ends with."""
    if not name.startswith(VALIDATION):
        return None
    step = name.removeprefix(VALIDATION).strip("-_")
    return int(step) if step.isdecimal() else None


def _tools(history: History) -> Figure:
    ways = {"calls/executed": "executed", "calls/cached": "from the cache", "calls/shared": "shared in flight"}
    inherited = {"calls/inherited": "inherited"}
    percentiles = prefixed(history, "tools/seconds/").items()
    seconds = {name: label.replace("/", ", ") for name, label in percentiles if not name.endswith("p99")}
    return Figure(
        name="tools",
        title="Tool calls",
        panels=[
            Panel(title="Tool calls that the leaves rest on", stack=True, lines=lines(history, {**ways, **inherited})),
            Panel(title="Seconds a call", y_label="seconds", from_zero=True, lines=lines(history, seconds)),
            Panel(title="Outcomes of tool calls", stack=True, lines=lines(history, prefixed(history, "outcomes/"))),
            Panel(title="Endings of branches", stack=True, lines=lines(history, prefixed(history, "endings/"))),
            Panel(title="Failed calls by kind", stack=True, lines=lines(history, prefixed(history, "faults/"))),
        ],
        caption="Inherited: calls on shared trunks, counted again for each leaf beyond the first. Sharing saved these. "
        "Seconds: half and 95 % of a step's executed calls took at most so long.",
    )


def _by_position(history: History) -> list[Line]:
    """Mean entropy by position over the first and the last fifth of the run (at least a step each)."""
    share = max(1, len(history) // 5)
    spans = [("", history)] if len(history) < 4 else [(", early", history[:share]), (", late", history[-share:])]
    found = []
    for kind, label, colour in (("first", "first turn", "#5c6b7a"), ("after_tool", "after a tool result", "#d1571f")):
        for suffix, span in spans:
            names = sorted({key for m in span for key in m if key.startswith(f"entropy_at/{kind}/")})
            points = [(int(n.rpartition("/")[2]), [m[n] for m in span if m.get(n) is not None]) for n in names]
            x, y = [p for p, v in points if v], [sum(v) / len(v) for _, v in points if v]
            early = suffix == ", early"
            found.append(Line(label=label + suffix, x=x, y=y, colour=colour, light=early, dashed=early))
    return found


def _branching(history: History) -> Figure:
    heads = {"entropy/first": "first turn", "entropy/after_tool": "after a tool result", "entropy/rise": "rise"}
    decisions = {"decisions/granted": "granted", "decisions/refused": "refused"}
    shares = {
        "entropy/rise_positive": "rise > 0",
        "decisions/waited": "decision waited",
        "decisions/flips": "flips within bounds",
    }
    position = "token of the turn"
    return Figure(
        name="branching",
        title="Entropy and branching",
        panels=[
            Panel(
                title="Entropy by position",
                x_label=position,
                y_label="nats",
                lines=_by_position(history),
                from_zero=True,
            ),
            Panel(title="Head entropy", y_label="nats", from_zero=True, lines=lines(history, heads)),
            Panel(title="Siblings wanted", stack=True, lines=lines(history, decisions)),
            Panel(title="Share of tips", percent=True, lines=lines(history, shares)),
        ],
        caption="Entropy by position: mean by position in the turn, first turns against turns right after a tool "
        "result, over the first and the last fifth of the run. A sibling is refused where the budget or its root's "
        "cap is used up.",
    )


def _learner(history: History) -> Figure:
    """From `train/NAME`, the figures of Learner.update under that prefix."""
    spread = {"p01": "1 %", "p50": "median", "p99": "99 %", "max": "largest"}
    clipped = lines(history, {name: label.strip() for name, label in prefixed(history, "train/clipped").items()})
    ahead = any(line.get("staleness/max") for line in history)
    stale = {"staleness/mean": "mean", "staleness/max": "largest"} if ahead else {}
    titles = {
        "loss": "Loss",
        "grad_norm": "Gradient norm",
        "lr": "Learning rate",
        "kl_reference": "KL to the reference",
        "entropy": "Entropy",
    }
    panels = [
        *(Panel(title=title, lines=lines(history, {f"train/{name}": title})) for name, title in titles.items()),
        Panel(title="Importance ratio",
            lines=lines(history, {f"train/ratio_{n}": label for n, label in spread.items()})),
        Panel(title="Clipped", percent=True, lines=clipped),
        Panel(title="Engine to learner: weight",
            lines=lines(history, {f"train/mismatch_weight_{n}": label for n, label in spread.items()})),
        Panel(title="Engine to learner: |difference|", y_label="nats", from_zero=True,
              lines=lines(history, {"train/mismatch_abs_mean": "mean"})),
        Panel(title="Engine to learner: KL estimate", y_label="nats", from_zero=True,
              lines=lines(history, {"train/mismatch_kl": "KL(engine || learner)"})),
        Panel(title="Engine to learner: truncated", y_label="share of tokens", from_zero=True,
              lines=lines(history, {"train/mismatch_truncated": "above the cap"})),
        Panel(title="Staleness", y_label="versions", from_zero=True, lines=lines(history, stale)),
    ]  # fmt: skip
    caption = (
        "Importance ratio: the policy being trained against the policy at the start of the step, over tokens. "
        "Engine to learner: how the two disagree on the same tokens (1 and 0 where they agree)."
        + (
            " Staleness: versions of the weights between those that wrote a token and those trained on it."
            if ahead
            else ""
        )
    )
    return Figure(name="learner", title="Health of the learner", panels=panels, caption=caption, columns=3)
