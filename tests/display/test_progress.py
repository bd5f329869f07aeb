import io
import math

from arpo.display.progress import EvalProgress, Progress, duration, summary_line
from arpo.display.terminal import Console


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def test_plain_output_is_one_line_a_step_without_control_codes():
    console, clock = plain(), Clock()
    with Progress(2, console=console, clock=clock) as progress:
        for step in range(2):
            progress.phase("sampling", total=4)
            clock.now += 30
            progress.advance(4)
            progress.phase("update")
            clock.now += 10
            progress.step(
                {"reward/leaves": 0.5, "accuracy/probe_lines": 0.25 * step, "tokens/generated": 3000}
                | progress.timings()
            )
        progress.say("[bold]not markup[/bold]")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "step 1/2  reward 0.500  accuracy 0%  tokens 3,000  tokens/s 100  seconds 40  40 s left"
    assert lines[1].startswith("step 2/2") and "left" not in lines[1]
    assert lines[2] == "[bold]not markup[/bold]" and "\x1b" not in console.file.getvalue()


def test_phases_add_up_within_a_step_and_start_afresh_in_the_next():
    clock = Clock()
    progress = Progress(3, console=plain(), clock=clock)
    for name, seconds in (("sampling", 5), ("update", 2), ("sampling", 1)):
        progress.phase(name)
        clock.now += seconds
    assert progress.timings() == {"seconds/sampling": 6, "seconds/update": 2, "seconds/step": 8}
    assert progress.timings() == progress.timings()
    progress.step({})
    progress.phase("update")
    clock.now += 4
    assert progress.timings() == {"seconds/update": 4, "seconds/step": 4}


def test_time_left_knows_steps_done_before_and_never_exceeds_the_budget():
    clock = Clock()
    progress = Progress(10, minutes=2, done=4, console=plain(), clock=clock)
    assert math.isnan(progress.remaining_s) and progress.room_for_step()
    clock.now = 20
    progress.step({})
    assert progress.step_s == 20 and progress.remaining_s == 100  # five steps of 20 s, all of what the budget leaves
    clock.now = 40
    progress.step({})
    assert progress.remaining_s == 80 and progress.room_for_step()
    assert progress.room_for_step(reserve_s=50) and not progress.room_for_step(reserve_s=60)
    clock.now = 100
    assert not progress.room_for_step() and progress.budget_left_s == 20


def test_what_is_sampled_after_the_last_step_takes_as_long_as_the_last_steps_show():
    clock = Clock()
    progress = Progress(10, minutes=10, console=plain(), clock=clock)
    assert progress.room_for_step(tokens=1e9), "nothing is known before the first step"
    for per_s in (1000, 10, 20, 30):  # the mean of the last three is 20
        progress.step({"tokens/generated": 4 * per_s, "seconds/sampling": 4})
    assert progress.room_for_step(tokens=11_900) and not progress.room_for_step(tokens=12_100)
    assert not progress.room_for_step(tokens=11_900, reserve_s=10)
    progress.step({"tokens/per_s": 100, "tokens/generated": 1, "seconds/sampling": 0})  # as an asynchronous step says
    assert progress.room_for_step(tokens=29_900) and not progress.room_for_step(tokens=30_100)


def test_a_terminal_shows_phase_and_bar():
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(5, console=console, clock=clock, title="quickstart") as progress:
        progress.phase("sampling", total=8)
        progress.advance(3)
        clock.now = 65
        console.print(progress._render())
    shown = console.file.getvalue()
    assert "quickstart" in shown and "step 1/5" in shown and "sampling 3/8" in shown and "1:05" in shown


def test_a_line_leaves_out_what_a_step_lacks():
    assert (
        summary_line({"reward/leaves": None, "accuracy/probe_lines": float("nan"), "calls/answered": 3})
        == "tool calls 3"
    )
    assert [duration(s) for s in (0.4, 59, 65, 3725)] == ["0 s", "59 s", "1:05", "1:02:05"]


def test_an_evaluation_is_a_line_a_quarter_of_what_is_new():
    console, clock = plain(), Clock()
    with EvalProgress(console, 8, title="gsm8k", before=4, clock=clock) as progress:
        for number in range(4):
            clock.now += 10
            progress.add(float(number % 2), failed=number == 0)
    assert console.file.getvalue().splitlines() == [
        "evaluating gsm8k: 6 of 8, accuracy 50%, 1 failed, about 20 s left",
        "evaluating gsm8k: 8 of 8, accuracy 50%, 1 failed",
    ]
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with EvalProgress(terminal, 2) as progress:
        progress.add(1.0, failed=False)
    assert "evaluating: 1 of 2, accuracy 100%" in terminal.file.getvalue()
