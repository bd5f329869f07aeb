"""Where the seconds of a training step of the quickstart go, phase by phase, and what bounds each of them.

    arpo bench step                                   the recipe's own step, a few times
    arpo bench step -- --before 84064ea               beside the library as it was at that commit, in turn
    arpo bench step -- --json now.json                and keep it
    arpo bench step -- --baseline before.json         beside figures that were kept
    arpo bench step -- rollout.leaves=16              with other settings

Trains the recipe for real in a folder of its own, with clocks around the parts. Every moment counts once: as the engine's while it
computes, else as a tool's, a reward's and so on, so the shares add up to the step; what no clock covers is `everything else`. The
first step warms up and does not count. A checkpoint is charged to the steps that it is written for.

With --before, earlier and present library train by turns, twice each in processes of their own, half as many steps a time, and the
figures are means. Draws differ between commits and so do trees: compare seconds a token where tokens differ.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import _earlier
import _figures
from _clocks import REST, Clocks, Moment, busy, exclusive
from _peak import copy_peak, matmul_peak
from rich.console import Console
from torch import nn

import arpo.engines.decoder
import arpo.learner.local
import arpo.rollout.collect
import arpo.rollout.tree_rollout
from arpo.display.progress import Progress
from arpo.errors import ArpoError
from arpo.files import write_json
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs.folder import RunFolder
from arpo.training.loop import Trainer
from arpo.training.pipeline import train

# In the order of importance: a moment belongs to the first of these that is under way.
ENGINE, PACKING, RECORDS = "sampling", "packing", "records"
UPDATE, PUBLICATION, TOOLS, REWARDS = "update", "publication", "tools", "rewards"
WAITING, CREDIT, CHECKPOINT = "rollout without engine", "credit and measurement", "checkpoint"
ORDER = (PUBLICATION, ENGINE, PACKING, RECORDS, UPDATE, TOOLS, REWARDS, CREDIT, CHECKPOINT, WAITING)
COUNTED = (
    "steps",
    "prefill_tokens",
    "reused_tokens",
    "copied_tokens",
    "decode_tokens",
    "forward_s",
    "sampling_s",
    "copy_s",
)  # of EngineStats
GOAL = 0.95


@dataclass(slots=True)
class Watch:
    """The run under way: when its steps ended, and the engine's counts at those moments."""

    trainer: Trainer | None = None
    ends: list[Moment] = field(default_factory=list)
    counts: list[dict[str, float]] = field(default_factory=list)

    def note_step(self) -> None:
        assert self.trainer is not None
        engine: Any = self.trainer.components.agent.engine
        self.ends.append(Moment.now())
        self.counts.append({name: float(getattr(engine.stats, name)) for name in COUNTED})


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    try:
        if options.before:
            figures, earlier = _beside(options)
        else:
            figures = measured(load_recipe(options.recipe, _overrides(options)))
            earlier = json.loads(Path(options.baseline).read_text()) if options.baseline else None
    except ArpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for side in (figures, earlier) if earlier else (figures,):
        side["cpu_ms_a_token"] = _a_token(side)
    show(figures, earlier)
    if earlier:
        kept = ("step_s", "phases_s", "cpu_s", "a_step", "cpu_ms_a_token", "commit")
        figures["before"] = {name: earlier[name] for name in kept if name in earlier}
    if options.json:
        write_json(Path(options.json), figures)
    share = (figures["phases_s"][ENGINE] + figures["phases_s"][UPDATE]) / figures["step_s"]
    return _figures.finish("step", figures, [_figures.at_least("sampling and update, share of a step", GOAL, share)])


def _overrides(options: argparse.Namespace) -> list[str]:
    small = ["train.tasks_per_step=2", "rollout.leaves=4", "rollout.roots=2"]
    return [
        f"train.steps={3 if options.quick else 1 + options.steps}",
        "train.minutes=null",
        "train.gates=null",
        "train.eval_every=null",
        "data.test=null",
        *(small if options.quick else []),
        *options.overrides,
    ]


def _beside(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the library at hand and of `options.before`. Raises ArpoError."""
    found: dict[str, list[dict[str, Any]]] = {"now": [], "before": []}
    with tempfile.TemporaryDirectory(prefix="arpo-before-") as folder:
        sources = {"now": _earlier.ROOT, "before": Path(folder)}
        commit = _earlier.checkout(options.before, Path(folder))
        plain = ["--recipe", options.recipe, "--steps", str(max(1, options.steps // 2)), *(["--quick"] if options.quick else [])]
        for turn, side in enumerate(["before", "now"] if options.quick else ["before", "now", "now", "before"]):
            kept = Path(folder) / f"{turn}.json"
            _earlier.run(Path(__file__), [*plain, "--json", str(kept), *options.overrides], sources[side])
            found[side].append(json.loads(kept.read_text()))
    return _mean(found["now"]), {**_mean(found["before"]), "commit": commit}


def _mean(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first run's figures with the means of all runs' seconds and counts."""
    made = dict(runs[0])
    for table in ("phases_s", "cpu_s", "a_step"):
        made[table] = {name: math.fsum(run[table].get(name, 0.0) for run in runs) / len(runs) for name in runs[0][table]}
    return {**made, "step_s": math.fsum(made["phases_s"].values()), "steps": sum(run["steps"] for run in runs)}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="arpo bench step --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the run: rollout.leaves=16")
    parser.add_argument("--recipe", default="quickstart", help="a recipe's name or path (default: quickstart)")
    parser.add_argument("--steps", type=int, default=4, help="steps that count (default: 4); one more warms up")
    parser.add_argument("--quick", action="store_true", help="two small steps: to see that it works, not what it says")
    parser.add_argument("--before", metavar="COMMIT", help="the same with the library as it was at this commit, in turn")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, for a later --baseline")
    parser.add_argument("--baseline", metavar="FILE", help="figures of an earlier run, shown beside these")
    return parser


def measured(run: RunConfig) -> dict[str, Any]:
    """Train `run` in a folder that does not stay. Raises ArpoError."""
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="arpo-step-") as folder, Clocks() as clocks, ExitStack() as stack:
        put_clocks(clocks)
        _watch_steps(watch, stack)
        out = train(run, out=Path(folder) / "run", console=Console(stderr=True, soft_wrap=True))
        history = RunFolder(out).metrics()
        size = sum(file.stat().st_size for file in (out / "events").iterdir())
        commit = RunFolder(out).environment()[-1].get("commit")
    return {**_figures_of(run, watch, clocks, history), "records_bytes": size / len(history), "commit": commit}


def put_clocks(clocks: Clocks) -> None:
    """Around every part of a step. The names in `arpo` that this depends on are here and nowhere else."""
    clocks.around(arpo.engines.decoder.Decoder, "step", ENGINE)
    clocks.around(*_tools(), TOOLS)
    clocks.around(arpo.rollout.collect, "run_reward", REWARDS)
    clocks.around(arpo.learner.local, "pack", PACKING)
    clocks.around(RunFolder, "append_tree", RECORDS)
    for method, name in (
        ("collect", WAITING),
        ("credit", CREDIT),
        ("measure", CREDIT),
        ("check", CREDIT),
        ("update", UPDATE),
        ("record", RECORDS),
        ("finish_step", RECORDS),
        ("publish", PUBLICATION),
        ("save", CHECKPOINT),
    ):
        clocks.around(Trainer, method, name)


def _tools() -> tuple[Any, str]:
    """Where tools are called: with --before, libraries meet this script that do not have traffic yet."""
    try:
        from arpo.tools.gateway import ToolGateway
    except ModuleNotFoundError:
        return arpo.rollout.tree_rollout, "run_call"
    return ToolGateway, "call"


def _watch_steps(watch: Watch, stack: ExitStack) -> None:
    trained, stepped = Trainer.train, Progress.step

    async def training(self: Trainer) -> Any:
        watch.trainer = self
        return await trained(self)

    def stepping(self: Progress, metrics: Mapping[str, object]) -> None:
        stepped(self, metrics)
        if watch.trainer is not None:  # a cold start has steps of its own
            watch.note_step()

    stack.enter_context(mock.patch.object(Trainer, "train", training))
    stack.enter_context(mock.patch.object(Progress, "step", stepping))


def _figures_of(run: RunConfig, watch: Watch, clocks: Clocks, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    assert watch.trainer is not None
    start, end, steps = watch.ends[0], watch.ends[-1], len(watch.ends) - 1
    phases = {name: seconds / steps for name, seconds in exclusive(clocks.intervals, ORDER, start, end).items()}
    on_cpu = {name: seconds / steps for name, seconds in exclusive(clocks.intervals, ORDER, start, end, "cpu").items()}
    saves = [one.end.wall - one.start.wall for one in clocks.intervals if one.name == CHECKPOINT and one.end > end]
    if saves and run.train.save_every:
        phases[CHECKPOINT] += max(saves) / run.train.save_every
    counted = {name: (watch.counts[-1][name] - watch.counts[0][name]) / steps for name in COUNTED}
    counted |= {
        name: math.fsum(float(line.get(name) or 0.0) for line in history[1:]) / steps
        for name in ("tokens/trained_unique", "train/tokens_trained", "calls/executed", "leaves/all")
    }
    dtype = watch.trainer.components.agent.engine.dtype
    return {
        "step_s": math.fsum(phases.values()),
        "phases_s": phases,
        "cpu_s": on_cpu,
        "steps": steps,
        "a_step": counted,
        "tools_busy_s": busy(clocks.intervals, TOOLS, start, end) / steps,
        "updates_per_step": run.train.updates_per_step,
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_gflops": matmul_peak(dtype),
        "copy_gb_s": copy_peak(),
        **_sizes(watch.trainer.components.model),
    }


def _sizes(model: nn.Module) -> dict[str, float]:
    """Weights of matrix products a token: of the body, and of the head."""
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    linear = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)}
    own = id(model.get_output_embeddings().weight)  # type: ignore[operator]
    return {"body_weights": float(sum(n for key, n in linear.items() if key != own)), "head_weights": float(head)}


def _a_token(figures: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of the processor for a token read or written by the engine, and for one trained on: trees differ, these less."""
    a_step, cpu = figures["a_step"], figures["cpu_s"]
    computed = a_step["prefill_tokens"] + a_step["decode_tokens"]
    return {
        ENGINE: 1e3 * cpu[ENGINE] / max(computed, 1.0),
        UPDATE: 1e3 * cpu[UPDATE] / max(a_step["train/tokens_trained"], 1.0),
    }


# --- what is shown


def bounds(figures: Mapping[str, Any]) -> dict[str, str]:
    """A sentence by phase: how near it comes to what limits it. Attention's products are not counted."""
    a_step, phases = figures["a_step"], figures["phases_s"]
    body, head, peak = figures["body_weights"], figures["head_weights"], figures["matmul_gflops"]
    drawn = 2 * (body * (a_step["prefill_tokens"] + a_step["decode_tokens"]) + head * a_step["decode_tokens"]) / 1e9
    again = (figures["updates_per_step"] - 1) / figures["updates_per_step"]  # whose old log-probabilities are computed first
    learnt = (6 + 2 * again) * (body * a_step["train/tokens_trained"] + head * a_step["tokens/trained_unique"]) / 1e9
    inner = {"forward": a_step["forward_s"], "picking tokens": a_step["sampling_s"], "finding prefixes": a_step["copy_s"]}
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in inner.items())
    return {
        ENGINE: (
            f"{_rate(a_step['decode_tokens'], phases[ENGINE])} tokens/s written, {a_step['prefill_tokens']:.0f} read, "
            f"{a_step['reused_tokens']:.0f} reused; {a_step['decode_tokens'] / max(a_step['steps'], 1):.1f} turns a forward pass; "
            f"products {_share(drawn, a_step['forward_s'], peak)}; {parts}"
        ),
        UPDATE: (
            f"{_rate(a_step['train/tokens_trained'], phases[UPDATE])} tokens/s; products {_share(learnt, phases[UPDATE], peak)}"
        ),
        PUBLICATION: (
            f"{(body + head) * 6 / 1e9 / max(phases[PUBLICATION], 1e-9):.1f} GB/s of weights (float32 read, bfloat16 written); "
            f"a plain copy does {figures['copy_gb_s']:.1f} GB/s"
        ),
        TOOLS: f"{a_step['calls/executed']:.0f} calls took {figures['tools_busy_s']:.2f} s, all but this behind the engine",
        REWARDS: f"{a_step['leaves/all']:.0f} leaves",
        RECORDS: f"{figures.get('records_bytes', 0) / 1e3:.0f} kB of trees, written twice, zlib",
        PACKING: "Python",
        WAITING: "asyncio and bookkeeping between forward passes",
        CREDIT: "Python",
        CHECKPOINT: f"the disk: a checkpoint's seconds over the steps between two; here {phases[CHECKPOINT]:.2f} s",
        REST: "",
    }


def _rate(count: float, seconds: float) -> str:
    return f"{count / seconds:.0f}" if seconds else "-"


def _share(gflop: float, seconds: float, peak: float) -> str:
    reached = gflop / seconds if seconds else 0.0
    return f"{reached:.0f} GFLOP/s, {reached / peak:.0%} of this machine's {peak:.0f}"


def show(figures: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> None:
    """A table on standard output, the longest phase first: seconds of the wall clock, processor seconds, and those of before."""
    limits, sides = bounds(figures), [side for side in (earlier, figures) if side is not None]
    heads = ["before", "its CPU", "now", "CPU"][-2 * len(sides) :]
    print(f"{'seconds a step':26}" + "".join(f"{head:>9}" for head in heads) + "   share  what bounds it")
    for name in sorted(figures["phases_s"], key=figures["phases_s"].__getitem__, reverse=True):
        shown = [side[key].get(name, 0.0) for side in sides for key in ("phases_s", "cpu_s")]
        _row(name, shown, figures["phases_s"][name] / figures["step_s"], limits[name])
    _row("in all", [value for side in sides for value in (side["step_s"], math.fsum(side["cpu_s"].values()))], 1.0, "")
    for name, what in ((ENGINE, "read or written"), (UPDATE, "trained on")):
        spent = " before, ".join(f"{side['cpu_ms_a_token'][name]:.2f}" for side in sides)
        print(f"{name}: {spent}{' now' if earlier else ''} ms of the processor a token {what}")
    print()


def _row(name: str, seconds: Sequence[float], share: float, limit: str) -> None:
    print(f"{name:26}{''.join(f'{value:9.3f}' for value in seconds)} {share:7.1%}  {limit}".rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
