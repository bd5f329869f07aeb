"""GRPO, fixed sharing, random branching and ARPO at equal leaves from one cold start, over seeds; goes on where it
stopped.

    arpo bench quickstart-compare -- --seeds 3            (12 cells of 15 to 20 minutes on two cores)
    arpo bench quickstart-compare -- --cells 2            two cells now, the others with the same command later
    arpo bench quickstart-compare -- --cells 0            only the table of what is there

`grpo` starts every leaf from the prompt. `fixed` forks every root at its first tool result until the tree is full:
prefix sharing alone. `random` branches as often as ARPO's run of the same seed wanted to, at tips chosen by chance.
`arpo` is the recipe. Every cell runs in a process of its own, one at a time. Leaves OUT/cells/*.json, OUT/table.md,
OUT/plot.png; the last line printed is a JSON object.
"""

import argparse
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from _cells import METHODS, Cell, Plan, carry_out, cell_run, check_begun, finished
from filelock import FileLock, Timeout

from arpo.display.tables import ShownTable
from arpo.display.terminal import Console
from arpo.errors import ArpoError, ConfigError, nearest
from arpo.evaluation.comparison import ComparedRun, Comparison, Evaluated, draw_comparison
from arpo.evaluation.comparison_tables import tables as compared_tables
from arpo.evaluation.statistics import Estimate, over_seeds
from arpo.files import json_line, write_atomic
from arpo.sft.cache import SFTCache

START = "cold start"
LAST = 5  # steps at the end over which training accuracy is averaged
MOST_CALLS = 0.82  # of GRPO's: what sharing prefixes saves at the least, by simulation of the scheduler alone
COSTS = {
    "calls/executed": "tool calls",
    "tokens/generated": "tokens generated",
    "train/tokens_trained": "tokens trained",
    "seconds/step": "seconds of training",
}
BRANCHING = {
    "decisions/tips": "tips",
    "decisions/wanted": "siblings wanted",
    "decisions/granted": "granted",
    "leaves/fills": "fills",
    "calls/inherited": "tool calls inherited",
    "tokens/shared": "tokens shared",
}
EXPLAINED = (
    "Calls, tokens and seconds are means over seeds, in brackets the share of the first method's; tokens trained "
    "counts what the learner computed, shared prefixes once."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where a cell failed, 2 for a mistake in what was asked, 130 for Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started this in the background
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = _options().parse_args(arguments)
    try:
        plan = _plan(options)
        plan.out.mkdir(parents=True, exist_ok=True)
        with FileLock(plan.out / ".lock", blocking=False):
            failures = carry_out_cells(plan, options.cells)
            return 1 if show(plan, failures) else 0
    except Timeout:
        print(f"error: another comparison is at work in {options.out}", file=sys.stderr)
    except ArpoError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 2


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arpo bench quickstart-compare --", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of every cell: optim.lr=1e-5")
    parser.add_argument("--recipe", default="quickstart", help="ARPO's recipe (default: quickstart)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-compare"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="run seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of {','.join(METHODS)} (default: all)")
    parser.add_argument("--steps", type=int, help="training steps a cell (else the recipe's)")
    parser.add_argument("--cells", type=int, metavar="N", help="stop after N cells; 0: only show what is there")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    """Raises ConfigError for what cannot be asked."""
    methods = [method.strip() for method in options.methods.split(",")]
    for method in methods:
        if method not in METHODS:
            raise ConfigError("there is no such method", where="--methods", value=method, hint=nearest(method, METHODS))
    if options.seeds < 1:
        raise ConfigError("at least one seed is needed", where="--seeds", value=options.seeds)
    # cells compare at equal leaves, so time does not end them unless an override asks for it
    steps = () if options.steps is None else (f"train.steps={options.steps}",)
    plan = Plan(
        recipe=options.recipe,
        overrides=("train.minutes=null", *steps, *options.overrides),
        methods=tuple(method for method in METHODS if method in methods),
        seeds=tuple(range(options.seeds)),
        out=options.out.absolute(),
    )
    for seed in plan.seeds:
        if "random" in methods and "arpo" not in methods and finished(plan, "arpo", seed) is None:
            hint = "add arpo to --methods, or finish its cells first"
            raise ConfigError("random branches as often as arpo's cell of the same seed", where="--methods", hint=hint)
    check_begun(plan)
    keys = {SFTCache(cell_run(plan, method, seed)).key for method, seed in plan.order()}
    if len(keys) > 1:
        raise ConfigError("the cells would not share a cold start", where=plan.recipe, value=sorted(keys))
    return plan


def carry_out_cells(plan: Plan, most: int | None) -> dict[str, str]:
    """Carry out up to `most` of the cells that are missing, in order; the reasons of those that failed."""
    failures: dict[str, str] = {}
    missing = [cell for cell in plan.order() if finished(plan, *cell) is None][:most]
    for number, (method, seed) in enumerate(missing, 1):
        label = f"{method}-s{seed}"
        print(f"cell {number} of {len(missing)}: {label}", flush=True)
        try:
            carry_out(plan, method, seed)
        except ArpoError as error:
            failures[label] = str(error)
            print(f"{label} failed: {error}", file=sys.stderr, flush=True)
        else:
            write_table(plan, cells_of(plan), failures)
    return failures


# --- tables


def cells_of(plan: Plan) -> list[Cell]:
    """Finished cells in the order in which they are shown."""
    return [
        cell for method in plan.methods for seed in plan.seeds if (cell := finished(plan, method, seed)) is not None
    ]


def compared(cell: Cell) -> ComparedRun:
    found = {
        name: Evaluated(result=each)
        for name in ("after", "after-greedy")
        if (each := cell.results.get(name)) is not None
    }
    return ComparedRun(name=f"{cell.method}-s{cell.seed}", method=cell.method, history=cell.steps, evaluations=found)


def from_start(cells: Sequence[Cell]) -> Comparison:
    """The cells with their cold start as the first method, so that differences are what training brought."""
    before = {
        after: Evaluated(result=found)
        for after in ("after", "after-greedy")
        if (found := cells[0].results.get(after.replace("after", "before")))
    }
    start = ComparedRun(name=START, method=START, history=[], evaluations=before)
    return Comparison(runs=[start, *map(compared, cells)])


def held_out(cells: Sequence[Cell]) -> ShownTable:
    """Accuracy before and after, what training brought, and the difference to the first method seed by seed."""
    comparison = from_start(cells)
    first = cells[0].method
    rows = []
    for method, runs in comparison.methods.items():
        sampled, greedy = (comparison.accuracy(method, name) for name in ("after", "after-greedy"))
        gain = None if method == START else comparison.difference(method, "after")
        by_seed = "" if method in (START, first) else _points(seed_differences(cells, method, first))
        seeds = "" if method == START else str(len(runs))
        shown = [estimate.percent if estimate else "-" for estimate in (sampled, greedy)]
        rows.append([method, seeds, *shown, _points(gain.difference) if gain else "", by_seed])
    head = ["method", "seeds", "sampled", "greedy", "points over cold start", f"points over {first}, by seed"]
    note = (
        "95 % intervals: of the cold start and of the points over it over questions; else over seeds (Student's t), "
        "over questions where there is one seed. Points are of sampled accuracy on the same questions. "
        + resolution_note(cells)
    )
    return ShownTable(title="Accuracy on held-out questions", head=head, rows=rows, note=note)


def seed_differences(cells: Sequence[Cell], method: str, first: str) -> Estimate:
    """Sampled accuracy of `method` minus that of `first`, over the seeds that both have."""
    found = {
        (cell.method, cell.seed): r.accuracy.mean for cell in cells if (r := cell.results.get("after")) is not None
    }
    seeds = sorted(seed for name, seed in found if name == method and (first, seed) in found)
    return over_seeds([found[method, seed] - found[first, seed] for seed in seeds])


def _points(difference: Estimate) -> str:
    if math.isnan(difference.mean):
        return "-"
    interval = "" if math.isnan(difference.low) else f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{100 * difference.mean:+.1f}{interval}"


def resolution(accuracy: float, questions: int, seeds: int) -> float:
    """The smallest difference of two methods' accuracies that is found 4 times in 5 at the 5 % level, if questions are
    the only noise (Student's t with 2 (seeds - 1) degrees of freedom). NaN for one seed."""
    if seeds < 2 or questions < 1:
        return math.nan
    from scipy.stats import t  # imported here: scipy.stats takes a second

    freedom = 2 * (seeds - 1)
    return float(
        (t.ppf(0.975, freedom) + t.ppf(0.8, freedom)) * math.sqrt(2 * accuracy * (1 - accuracy) / (questions * seeds))
    )


def resolution_of(cells: Sequence[Cell]) -> tuple[float, int, int]:
    """The difference that these cells can tell, with the fewest questions of a cell and the fewest seeds of a
    method."""
    asked = [found for cell in cells if (found := cell.results.get("after")) is not None]
    questions = min((results.questions for results in asked), default=0)
    methods = [cell.method for cell in cells]
    seeds = min(methods.count(method) for method in methods)
    accuracy = sum(results.accuracy.mean for results in asked) / max(1, len(asked))
    return resolution(accuracy, questions, seeds), questions, seeds


def resolution_note(cells: Sequence[Cell]) -> str:
    smallest, questions, seeds = resolution_of(cells)
    if math.isnan(smallest):
        return "With one seed a method's luck cannot be told from its merit."
    return (
        f"With {questions} questions and {seeds} seeds only differences of about {max(1, round(100 * smallest))} "
        "points can be told (found 4 times in 5 at the 5 % level, if seeds differ no more than chance makes them): "
        "smaller ones are no evidence."
    )


def training(cells: Sequence[Cell]) -> ShownTable:
    """The accuracy curve in two figures, and what the runs cost."""
    methods = Comparison(runs=[compared(cell) for cell in cells]).methods
    base = [total(methods[cells[0].method], metric) for metric in COSTS]
    rows = []
    for method, runs in methods.items():
        curve = [over_seeds(level(runs, last)).percent for last in (None, LAST)]
        steps = "/".join(f"{n:g}" for n in sorted({len(run.history) for run in runs}))
        spent = [total(runs, metric) for metric in COSTS]
        costs = [f"{one:,.0f} ({one / of:.2f})" if of else f"{one:,.0f}" for one, of in zip(spent, base, strict=True)]
        rows.append([method, steps, *curve, *costs])
    head = ["method", "steps", "accuracy, all steps", f"last {LAST} steps", *COSTS.values()]
    note = (
        "Accuracy of training questions on probe lines, sampled before each update: the area under its curve as a "
        f"mean over steps, and its mean over the last {LAST}; intervals over seeds. {EXPLAINED}"
    )
    return ShownTable(title="Training", head=head, rows=rows, note=note)


def branching(cells: Sequence[Cell]) -> ShownTable:
    """How much each method branched, so that a difference can be put down to where it did."""
    rows = []
    for method, runs in Comparison(runs=[compared(cell) for cell in cells]).methods.items():
        rows.append([method, *(f"{total(runs, metric):,.0f}" for metric in BRANCHING)])
    rates = {cell.seed: cell.recipe["rollout"]["rule"]["rates"] for cell in cells if cell.method == "random"}
    note = "Means over seeds. A fill starts from the prompt where no branch was left to be made. " + (
        "random branches with the shares of tips at which arpo's cell of the same seed wanted to, by depth: "
        + "; ".join(f"seed {seed}: {', '.join(f'{100 * p:.0f} %' for p in found)}" for seed, found in rates.items())
        if rates
        else ""
    )
    return ShownTable(title="Branching", head=["method", *BRANCHING.values()], rows=rows, note=note.strip())


def level(runs: Sequence[ComparedRun], last: int | None) -> list[float]:
    """By run: mean accuracy on probe lines over its last steps (None: over all)."""
    curves = ([v for v in run.values("accuracy/probe_lines")[-(last or 0) :] if not math.isnan(v)] for run in runs)
    return [math.fsum(curve) / len(curve) for curve in curves if curve]


def total(runs: Sequence[ComparedRun], metric: str) -> float:
    return over_seeds([run.total(metric) for run in runs]).mean


def write_table(plan: Plan, cells: Sequence[Cell], failures: Mapping[str, str]) -> list[ShownTable]:
    """Write table.md and plot.png of the finished cells; the tables."""
    if not cells:
        return []
    comparison = Comparison(runs=[compared(cell) for cell in cells])
    shown = [
        held_out(cells),
        training(cells),
        branching(cells),
        *compared_tables(comparison)[1:],
    ]  # theirs begins with costs, which `training` has
    plot = draw_comparison(comparison, plan.out / "plot.png")
    leaves, num_cells = cells[0].recipe["rollout"]["leaves"], len(plan.order())
    parts = [
        f"# {', '.join(comparison.methods)} from one cold start",
        f"Recipe `{plan.recipe}`, {leaves} leaves a tree, {len(cells)} of {num_cells} cells finished.",
        *(f"Failed: {label}: {reason}" for label, reason in failures.items()),
        *(table.markdown() for table in shown),
        *(
            ["![Training accuracy and reward on probe lines](plot.png)", "A band spans a method's seeds."]
            if plot
            else []
        ),
    ]
    write_atomic(plan.out / "table.md", "\n\n".join(parts) + "\n")
    return shown


def show(plan: Plan, failures: Mapping[str, str]) -> bool:
    """Print tables, failures and the closing line; True where a cell failed."""
    # a table of so many columns breaks in the middle of its figures at 80
    console, cells = Console() if sys.stdout.isatty() else Console(width=180), cells_of(plan)
    for table in write_table(plan, cells, failures):
        console.print(table.rich())
        console.print()
    for label, reason in failures.items():
        print(f"failed: {label}: {reason}")
    if cells:
        print(f"table: {plan.out / 'table.md'}")
    closing = {"name": "quickstart-compare", "figures": figures(cells), "goals": goals(plan, cells)}
    print(json_line(closing).decode(), end="", flush=True)
    return bool(failures)


# --- the closing line


def figures(cells: Sequence[Cell]) -> dict[str, Any]:
    """By method, and of the cold start that they share: what the tables show, as numbers."""
    if not cells:
        return {}
    found: dict[str, Any] = {}
    comparison, first = from_start(cells), cells[0].method
    for method, runs in comparison.methods.items():
        accuracy = {
            name: comparison.accuracy(method, after)
            for name, after in (("sampled", "after"), ("greedy", "after-greedy"))
        }
        found[method] = {name: asdict(estimate) for name, estimate in accuracy.items() if estimate}
        if method == START:
            continue
        if gain := comparison.difference(method, "after"):
            found[method]["over_cold_start"] = {**asdict(gain.difference), "p_value": gain.p_value}
        found[method] |= {
            "seeds": len(runs),
            "accuracy_all_steps": asdict(over_seeds(level(runs, None))),
            "accuracy_last_steps": asdict(over_seeds(level(runs, LAST))),
            **({} if method == first else {f"over_{first}_by_seed": asdict(seed_differences(cells, method, first))}),
            **{label.replace(" ", "_"): total(runs, metric) for metric, label in COSTS.items()},
        }
    plain = Comparison(runs=[compared(cell) for cell in cells])
    spent, levels = plain.at_equal("calls/executed", "accuracy/probe_lines")
    found["at_equal_tool_calls"] = {
        "tool_calls": spent,
        **{method: asdict(estimate) for method, estimate in levels.items()},
    }
    found["resolution"] = resolution_of(cells)[0]
    return found


def goals(plan: Plan, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What the comparison is to show, as far as there are cells for it."""
    found = [_goal("cells finished, at least", ">=", len(plan.order()), len(cells))]
    if not cells:
        return found
    found.append(
        _goal("cold starts that the cells came from, at most", "<=", 1, len({cell.cold_start_key for cell in cells}))
    )
    comparison = Comparison(runs=[compared(cell) for cell in cells])
    runs, leaves = comparison.methods, [run.total("leaves/all") for run in comparison.runs]
    found.append(
        _goal("most leaves of a cell, as a share of the fewest, at most", "<=", 1, max(leaves) / max(1.0, min(leaves)))
    )
    if "arpo" in runs and (gain := from_start(cells).difference("arpo", "after")):
        what = "points of sampled accuracy that arpo is above its cold start, lower bound, more than"
        found.append(_goal(what, ">", 0, 100 * gain.difference.low))
    if "arpo" in runs and cells[0].method == "grpo":
        calls = total(runs["arpo"], "calls/executed") / max(1.0, total(runs["grpo"], "calls/executed"))
        found.append(_goal("tool calls executed by arpo, as a share of grpo's, at most", "<=", MOST_CALLS, calls))
        if over := comparison.difference("arpo", "after"):
            what = (
                "points of sampled accuracy that arpo is above grpo, upper bound, at least: "
                "not worse as far as can be told"
            )
            found.append(_goal(what, ">=", 0, 100 * over.difference.high))
    return found


def _goal(what: str, sign: Literal[">", ">=", "<="], goal: float, measured: float) -> dict[str, Any]:
    holds = {">": measured > goal, ">=": measured >= goal, "<=": measured <= goal}[sign]
    return {"what": what, "goal": goal, "measured": measured, "holds": holds}


if __name__ == "__main__":
    sys.exit(main())
