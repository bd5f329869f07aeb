"""Every benchmark file goes through the whole path: who knows the golds scores 100 %, who answers wrongly 0 %."""

import io
from pathlib import Path

import pytest
from known_answers import says, write_played

from arpo.display.terminal import Console
from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.questions import choose
from arpo.evaluation.samples import read_samples
from arpo.recipe.load import load_recipe

FILES = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"
MOST = 5  # questions a benchmark, here; test_known_answers.py asks all


@pytest.mark.skipif(not FILES.is_dir(), reason="the files are not there")
def test_golds_score_and_wrong_answers_do_not(tiny_project, tmp_path):
    played = write_played(tiny_project, tmp_path / "project", 9001)
    chosen = choose(["all"], data=FILES, limit=MOST)
    assert len(chosen) >= 9
    tasks = [task for each in chosen for task in each.tasks]
    run = load_recipe(played.recipe, ["rollout.turn_tokens=8000", "rollout.branch_tokens=40000", "engine.slots=64"])
    request = {"benchmarks": ["all"], "data": FILES, "limit": MOST}
    for right in (True, False):
        played.play({task.question: says(task.answers[0] if right else "zyzzyva") for task in tasks})
        out = tmp_path / f"out-{right}"
        console = Console(file=io.StringIO(), width=140)
        [found] = evaluate_model(str(played.recipe), run, EvalRequest(**request, out=out), console=console)
        unlike = {
            answer.id: (answer.ending, answer.answer, answer.gold, answer.failure)
            for answer in read_samples(out).values()
            if answer.accuracy != float(right)
        }
        assert unlike == {} and {each.name: each.accuracy.mean for each in found.benchmarks} == {
            each.name: float(right) for each in chosen
        }
