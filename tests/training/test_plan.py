"""A planned run fits its minutes where it can, and never falls below its least."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.recipe.load import load_recipe
from arpo.training.plan import CLOSING_S, MIN_QUESTIONS, MIN_STEPS, Counts, Lengths, Speed, plan

LENGTHS = Lengths(prompt=60, written=40, observed=77)
SLOW, FAST = (
    Speed(trained_tokens_per_s=60, sampled_tokens_per_s=150),
    Speed(trained_tokens_per_s=5e4, sampled_tokens_per_s=5e4),
)
speeds = st.builds(Speed, trained_tokens_per_s=st.floats(1, 1e5), sampled_tokens_per_s=st.floats(1, 1e5))
counts = st.builds(
    Counts, tasks=st.integers(8, 5000), held_out=st.integers(0, 1000), traces=st.sampled_from([0, 8, 100, 480])
)


def a_run(*overrides):
    return load_recipe(
        "quickstart", ["train.steps=20", "evaluation.limit=200", "cold_start.num_traces=480", *overrides]
    )


@given(speeds, counts, st.floats(0, 2000))
def test_no_count_falls_below_its_least_or_rises_above_the_recipes(speed, counts, spent_s):
    run = a_run()
    planned = plan(run, speed, LENGTHS, counts, spent_s=spent_s)
    assert MIN_STEPS <= planned.run.train.steps <= 20
    assert min(MIN_QUESTIONS, counts.held_out) <= planned.run.evaluation.limit <= 200 or counts.held_out == 0
    if counts.traces:
        full, fewer = (
            each.cold_start.num_updates(min(counts.traces, each.cold_start.num_traces)) for each in (run, planned.run)
        )
        assert max(1, full // 4) <= fewer <= full
    else:
        assert planned.run.cold_start == run.cold_start, "what need not be made is left as it is, and so is its key"


@given(speeds, counts, st.floats(0, 2000))
def test_what_is_planned_fits_the_minutes_which_are_raised_only_for_the_least(speed, counts, spent_s):
    run = a_run()
    planned = plan(run, speed, LENGTHS, counts, spent_s=spent_s)
    minutes = planned.run.train.minutes
    assert planned.seconds + spent_s + CLOSING_S <= 60 * minutes + 6
    assert minutes == run.train.minutes or planned.run.train.steps == MIN_STEPS


def test_a_fast_machine_does_what_the_recipe_says_and_a_slow_one_less():
    there = Counts(tasks=1000, held_out=500, traces=0)
    fast = plan(a_run(), FAST, LENGTHS, there, spent_s=0)
    assert (fast.run.train.steps, fast.run.evaluation.limit, fast.run.train.minutes) == (20, 200, a_run().train.minutes)
    assert fast.run.plan == "made"
    slow = plan(a_run(), SLOW, LENGTHS, there, spent_s=0)
    assert slow.run.train.steps < 20 and slow.seconds > fast.seconds
    assert f"{slow.run.train.steps} steps" in slow.text and "60 tokens/s trained, 150 sampled" in slow.text


@pytest.mark.parametrize(
    ("times", "steps", "questions", "minutes"),
    [(0.5, 5, 100, 25), (1, 5, 180, 15), (2, 6, 200, 8), (2.5, 6, 200, 7), (20, 6, 200, 2)],
)
def test_the_quickstart_ends_when_it_has_learnt_enough_and_a_slow_core_has_its_least(times, steps, questions, minutes):
    """Speeds as multiples of those of two Zen 3 cores without bfloat16; half of them: one of these cores. 36 s go by
    before the plan."""
    speed = Speed(trained_tokens_per_s=192 * times, sampled_tokens_per_s=328 * times)
    spent_s = 36 / min(times, 2)
    there = Counts(tasks=1000, held_out=500, traces=0)
    planned = plan(load_recipe("quickstart"), speed, LENGTHS, there, spent_s=spent_s)
    assert (planned.run.train.steps, planned.run.evaluation.limit) == (steps, questions)
    assert planned.seconds + spent_s < 60 * minutes
    assert planned.run.train.minutes == 14 or times < 1


def test_a_cold_start_by_steps_or_epochs_is_cut_by_steps():
    there = Counts(tasks=1000, held_out=500, traces=480)
    planned = plan(a_run("cold_start.steps=60"), SLOW, LENGTHS, there, spent_s=0).run.cold_start
    assert 15 <= planned.steps < 60 and planned.num_traces == 480
    planned = plan(a_run("cold_start.epochs=2"), SLOW, LENGTHS, there, spent_s=0).run.cold_start
    assert 30 <= planned.steps < 120 and planned.epochs is None


@pytest.mark.parametrize("greedy", [0, 100])
def test_questions_come_in_tens_so_that_runs_of_one_machine_share_their_answers(greedy):
    there = Counts(tasks=1000, held_out=500, traces=0)
    planned = plan(a_run(f"evaluation.greedy_limit={greedy}"), SLOW, LENGTHS, there, spent_s=0).run.evaluation
    assert planned.limit % 10 == 0 and planned.greedy_limit % 10 == 0 and planned.greedy_limit <= greedy
