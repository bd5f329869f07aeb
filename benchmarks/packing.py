"""Tree-packed training against flat: seconds, gradients, and how cost grows with a tree.

    arpo bench packing                                     SmolLM2's shape, a recorded quickstart step, in its packs
    arpo bench packing -- --quick                          fewer trees, rounds and layers
    arpo bench packing -- --device cuda --shape Qwen2.5-1.5B

Three sides do one update on the same trajectories, in packs of the same size: `packed` computes what trajectories share
once, `prompt` shares a task's prompt alone, `flat` shares nothing (`train.packing: flat` is slower, since it runs each
trajectory alone). All are the library's learner; `flat` is a forest of single branches to it. Weights are random.

The recorded step is the first of a quickstart run: `quickstart_step.frames` holds its trees and their credit, without
texts. On a GPU, where these would be too small, trees are grown from lengths typical of search agents.

Then packs are dealt to 8 ranks as those of a mini-batch of `arpo-reasoning-7b`, of as many tokens as its budget: what
the rounds take over what they would take if no round had a rank that waits and no trunk were copied, beside two common
ways. This is arithmetic with the cost of a token and of a pair in Qwen2.5-7B's layers.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import torch
from _figures import Goal, at_most, finish, median
from _grown import Lengths, grow
from _shapes import SHAPES, model_of
from torch import Tensor

from arpo.core.credit import AdvantageConfig, CreditedTree, ScoredTree, credit
from arpo.core.place import Place
from arpo.core.record import decode
from arpo.core.tree import RolloutTree
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.dealing import deal_bins, time_of
from arpo.learner.grouping import LeafGroup, fill, leaf_groups
from arpo.learner.local import LocalLearner

RECORDED = Path(__file__).with_name("quickstart_step.frames")
LONG = Lengths(prompt=range(300, 700), turn=range(60, 300), observation=range(200, 700), calls=4)
LOSS = LossConfig(aggregation="token", tis_cap=None)  # no cap: random weights agree with no engine
OPTIM = OptimConfig(lr=1e-12, grad_clip=None)  # all sides and rounds see the same weights
Trees = list[CreditedTree]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    trees = grown_trees(4) if options.device == "cuda" else recorded_trees()
    rounds, layers = (1, 2) if options.quick else (options.rounds, None)
    trees = trees[:3] if options.quick else trees
    figures: dict[str, Any] = {"shape": options.shape, "device": options.device, "budget": options.budget}
    figures["layers"] = layers or "all"
    figures["sides"], goals = compare(trees, options, rounds, layers)
    figures["dealing"], alike = dealing(3 if options.quick else 10)
    goals = [*goals, *alike]
    if options.device == "cpu":
        figures["gradients"], equal = gradients(trees[:2], options.shape, layers)
        figures["leaves"], linear = by_leaves(trees, options, rounds)
        goals = [*goals, *equal, *linear]
    return finish("packing", figures, goals)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--budget", type=int, help="tokens of a pack (default: 2048, on a GPU 16384)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="three trees, one round, 2 layers, up to 32 leaves")
    options = parser.parse_args(arguments)
    options.budget = options.budget or (2048 if options.device == "cpu" else 16_384)
    return options


# --- trees


def recorded_trees() -> Trees:
    """The trees of the recorded step that can teach something, with the credit that they were trained with."""
    with RECORDED.open("rb") as frames:
        newest = {
            record.tree.task: record.credited for record in decode(frames)
        }  # of two frames the later has the credit
    return [tree for tree in newest.values() if any(tree.credit.values())]


def grown_trees(count: int, leaves: int = 16, roots: int = 8, lengths: Lengths = LONG) -> Trees:
    return credit([grow(seed, lengths, leaves=leaves, roots=roots).scored for seed in range(count)], AdvantageConfig())


def sharing_prompts(trees: Trees) -> Trees:
    """The same trajectories, each with its first turn as a root of its own."""
    return [_separate(tree, sorted(tree.advantages)) for tree in trees]


def sharing_nothing(trees: Trees) -> Trees:
    """The same trajectories, each a tree of its own."""
    return [_separate(tree, [leaf]) for tree in trees for leaf in sorted(tree.advantages)]


def _separate(credited: CreditedTree, leaves: Sequence[Place]) -> CreditedTree:
    was = credited.tree
    tree = RolloutTree(f"{was.task}/{leaves}", was.step, was.prompt)
    advantages: dict[Place, float] = {}
    worth: dict[tuple[Place, Place], float] = {}
    for root, leaf in enumerate(leaves):
        for depth in range(1, len(leaf) + 1):
            old, new = leaf[:depth], (root, *(0,) * (depth - 1))
            tree.grow(replace(was.turns[old], place=new))
            if depth < len(leaf):
                tree.grow(replace(was.observations[old], place=new))
        end = (root, *(0,) * (len(leaf) - 1))
        tree.end(end, was.endings[leaf])
        advantages[end] = credited.advantages[leaf]
        worth |= {(end[:depth], end): credited.credit[leaf[:depth], leaf] for depth in range(1, len(leaf) + 1)}
    return CreditedTree(ScoredTree(tree, {}), advantages, worth)


# --- measurements


def learner_of(model: Any, budget: int, dtype: torch.dtype) -> LocalLearner:
    return LocalLearner(model, loss=LOSS, optim=OPTIM, num_updates=1, token_budget=budget, tree=True, dtype=dtype)


def compare(
    trees: Trees, options: argparse.Namespace, rounds: int, layers: int | None
) -> tuple[dict[str, Any], list[Goal]]:
    """Seconds of an update by side, and whether packing saves as much time as it saves tokens."""
    model = model_of(options.shape, layers=layers, device=options.device)
    learner = learner_of(model, options.budget, torch.bfloat16)
    sides = {"packed": trees, "prompt": sharing_prompts(trees), "flat": sharing_nothing(trees)}
    seconds, tokens = _in_turn(learner, sides, rounds)
    found: dict[str, Any] = {
        name: {"tokens": tokens[name], **{kind: round(value, 3) for kind, value in _middle(seconds[name]).items()}}
        for name in sides
    }
    goals = []
    for other in ("flat", "prompt"):
        shares = {kind: found["packed"][kind] / found[other][kind] for kind in ("tokens", "seconds", "cpu_seconds")}
        found[f"packed/{other}"] = {kind: round(share, 4) for kind, share in shares.items()}
        what = (
            f"seconds of packed over {other} ({shares['seconds']:.3f}), "
            f"over tokens of packed over {other} ({shares['tokens']:.3f})"
        )
        goals.append(at_most(what, 1.15, shares["seconds"] / shares["tokens"]))
    return found, goals


def by_leaves(trees: Trees, options: argparse.Namespace, rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    """Seconds for one tree of 8, 16, 32 and 64 leaves in one pack, against a straight line. The recorded trees have 8
    leaves; these are grown from their lengths. Ten layers, so that the largest fits into little memory."""
    turns = [turn for tree in trees for turn in tree.tree.turns.values()]
    seen = [observation for tree in trees for observation in tree.tree.observations.values()]
    lengths = Lengths(
        prompt=[len(tree.tree.prompt.tokens) for tree in trees],
        turn=[len(turn.tokens) for turn in turns],
        observation=[len(observation.tokens) for observation in seen] or [50],
        calls=max(len(turn.place) for turn in turns) - 1,
        vocab_size=SHAPES[options.shape]["vocab_size"],
    )
    counts = (8, 16, 32) if options.quick else (8, 16, 32, 64)
    sides = {str(leaves): grown_trees(1, leaves, max(1, 3 * leaves // 8), lengths) for leaves in counts}
    learner = learner_of(model_of(options.shape, layers=2 if options.quick else 10), 1 << 20, torch.bfloat16)
    seconds, tokens = _in_turn(learner, sides, rounds)
    kind = "cpu_seconds"  # other processes slow a long update and a short one unevenly
    spent = {name: _middle(values)[kind] for name, values in seconds.items()}
    slope, fixed = _line([tokens[name] for name in sides], [spent[name] for name in sides])
    off = {name: spent[name] / (fixed + slope * tokens[name]) - 1 for name in sides}
    worst = max(map(abs, off.values()))
    figures = {
        "tokens": tokens,
        kind: {name: round(value, 3) for name, value in spent.items()},
        "ms_a_token": round(1e3 * slope, 4),
        "fixed_seconds": round(fixed, 3),
        "off_the_line": {name: round(value, 4) for name, value in off.items()},
    }
    return figures, [at_most(f"worst deviation from a line in unique tokens, 8 to {counts[-1]} leaves", 0.1, worst)]


def dealing(batches: int, ranks: int = 8, budget: int = 16_384) -> tuple[dict[str, Any], list[Goal]]:
    """Time over ideal of mini-batches of 16 trees in packs of `budget` tokens dealt to `ranks`, by the way to deal
    them."""
    pair_cost = 12 * 28 * 3584 / (6 * 6.53e9)  # Qwen2.5-7B: layers, hidden size, parameters of the layers

    def cost(group: LeafGroup) -> float:
        return group.num_tokens + pair_cost * group.num_pairs

    over: dict[str, list[float]] = {}
    for number in range(batches):
        trees = [_reasoning_tree(16 * number + one) for one in range(16)]
        ideal = sum(cost(group) for group in leaf_groups(trees, 1 << 40)) / ranks
        packs = [sum(map(cost, groups)) for groups in fill(leaf_groups(trees, budget), budget)]
        loads: list[list[float]] = [[] for _ in range(ranks)]
        for pack in sorted(packs, reverse=True):
            min(loads, key=sum).append(pack)
        for load in loads:
            Random(number).shuffle(load)
        by_way = {
            "first fit": sum(max(packs[at : at + ranks]) for at in range(0, len(packs), ranks)),
            "equal sums": sum(map(max, zip_longest(*loads, fillvalue=0.0))),
            "alike bins": time_of(deal_bins(trees, budget, ranks, pair_cost=pair_cost)),
        }
        for name, seconds in by_way.items():
            over.setdefault(name, []).append(seconds / ideal)
    figures = {name: {"mean": round(mean(values), 3), "worst": round(max(values), 3)} for name, values in over.items()}
    what = f"time over ideal of {batches} mini-batches dealt to {ranks} ranks (" + ", ".join(
        f"{name} {figures[name]['mean']:.2f}" for name in ("first fit", "equal sums")
    )
    return figures, [at_most(f"{what})", 1.1, figures["alike bins"]["mean"])]


def _reasoning_tree(seed: int) -> CreditedTree:
    """16 leaves as `arpo-reasoning-7b` grows them: some tasks are long, so the lengths of a tree's turns share a
    scale."""
    random = Random(f"dealing/{seed}")
    scale = random.lognormvariate(0, 0.5)
    turn = [max(1, min(2048, int(scale * random.lognormvariate(6.3, 0.45)))) for _ in range(50)]
    lengths = Lengths(prompt=[random.randint(300, 1500)], turn=turn, observation=range(50, 400), calls=3)
    [tree] = credit([grow(seed, lengths, leaves=16, roots=8).scored], AdvantageConfig())
    return tree


def gradients(trees: Trees, shape: str, layers: int | None) -> tuple[dict[str, Any], list[Goal]]:
    """Distance of the packed gradient from the flat one, over the length of the latter: in float64 (at most 4 layers),
    and in bf16 beside what bf16 itself is off float32."""
    model = model_of(shape, layers=min(4, layers or 4), dtype=torch.float64)
    flat = sharing_nothing(trees)
    exact = _distance(gradient(model, trees, torch.float64), gradient(model, flat, torch.float64))
    model = model_of(shape, layers=layers)
    truth = gradient(model, flat, torch.float32)
    packed_off = _distance(gradient(model, trees, torch.bfloat16), truth)
    flat_off = _distance(gradient(model, flat, torch.bfloat16), truth)
    figures = {"float64": exact, "bf16_packed_off_float32": packed_off, "bf16_flat_off_float32": flat_off}
    return figures, [
        at_most("gradients in float64, relative distance of packed from flat", 1e-6, exact),
        at_most("gradients in bf16: packed's distance from float32 over flat's", 1.1, packed_off / flat_off),
    ]


def gradient(model: Any, trees: Trees, dtype: torch.dtype) -> list[Tensor]:
    """What an update would step along."""
    learner = learner_of(model, 2048, dtype)
    kept: list[Tensor] = []

    def keep(*_: object) -> None:
        kept.extend(parameter.grad.clone() for parameter in model.parameters())
        for parameter in model.parameters():  # without gradients AdamW keeps no moments of them
            parameter.grad = None

    learner.optimizer.register_step_pre_hook(keep)
    learner.update(trees)
    return kept


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True))
    return (difference / sum(float(b.double().square().sum()) for b in other)) ** 0.5


def _in_turn(
    learner: LocalLearner, sides: dict[str, Trees], rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, int]]:
    """(seconds, seconds of the processor) of every update, the sides taking turns after one that warms up; and tokens
    computed."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    tokens: dict[str, int] = {}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else reversed(sides):
            wall, cpu = time.perf_counter(), time.process_time()
            tokens[name] = int(
                learner.update(sides[name]).metrics["tokens_trained"]
            )  # a number: whatever a GPU had to do is done
            if number:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds, tokens


def _middle(seconds: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {"seconds": median([wall for wall, _ in seconds]), "cpu_seconds": median([cpu for _, cpu in seconds])}


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least squares of relative deviations."""
    weight = torch.tensor(y, dtype=torch.float64).reciprocal()
    left = (
        torch.stack([torch.tensor(x, dtype=torch.float64), torch.ones(len(x), dtype=torch.float64)], 1)
        * weight[:, None]
    )
    slope, fixed = torch.linalg.lstsq(left, torch.ones(len(x), 1, dtype=torch.float64)).solution[:, 0].tolist()
    return slope, fixed


if __name__ == "__main__":
    raise SystemExit(main())
