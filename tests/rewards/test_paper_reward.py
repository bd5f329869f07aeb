"""The paper's rule, and the boundary that every reward passes."""

import asyncio
import json
import math
import sys
import time
import types

import pytest

from arpo.chat import ParsedTurn, Transcript
from arpo.core.score import Score
from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import ConfigError, RewardError
from arpo.rewards.boundary import run_reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.tasks import Task

TASK = Task(id="t1", messages=({"role": "user", "content": "q"},), answers=("Lima", "City of Lima"))


def transcript(answer="Lima", *, formed=True, outcomes=(), ending="finished", text=""):
    turns = (ParsedTurn(text=text), ParsedTurn(text=text, answer=answer, well_formed=formed))
    return Transcript(turns=turns, outcomes=tuple((o,) for o in outcomes), ending=ending, states={})


def ran(name, status=CallStatus.OK):
    return ToolCallResult(tool=name, status=status, text="x")


async def score(config, **parts):
    return await run_reward(build_reward(config), TASK, transcript(**parts))


async def test_the_table_of_the_paper():
    config = RewardConfig(answer="exact")
    assert (await score(config)).reward == 1.0
    assert (await score(config, answer="Cusco")).reward == 0.0
    broken = await score(config, formed=False)
    assert (
        broken.reward == -1.0
        and broken.accuracy == 1.0
        and broken.parts == {"format": 0.0, "answer": 1.0, "bonus": 0.0}
    )
    assert (await score(config, answer=None)).reward == -1.0
    assert (await score(config, ending="turn_length")).reward == -1.0
    assert (await score(RewardConfig(answer="f1"), answer="Lima Peru")).reward == pytest.approx(2 / 3)


async def test_the_bonus_is_for_tools_that_ran():
    config = RewardConfig(answer="exact", bonus=0.1, bonus_tools=("search", "python"))
    both = (ran("search"), ran("python"))
    assert (await score(config, outcomes=both)).reward == pytest.approx(1.1)
    assert (await score(config, outcomes=both[:1])).reward == 1.0
    assert (await score(config, answer="Cusco", outcomes=both)).reward == 0.0
    for status in (CallStatus.ERROR, CallStatus.TIMEOUT, CallStatus.REFUSED):
        assert (await score(config, outcomes=(ran("search"), ran("python", status)))).reward == 1.0


async def test_defect_11_writing_tags_earns_no_bonus():
    """The released code looks for `</search>` and `</python>` in the text."""
    config = RewardConfig(answer="exact", bonus=0.1, bonus_tools=("search", "python"))
    assert (await score(config, text="<think></search></python></think>")).parts["bonus"] == 0.0


@pytest.mark.parametrize(
    "gold, answer, accuracy",
    [
        ("-5", "5", 0.0),
        ("1.5", "15", 0.0),
        ("12/5", "1/25", 0.0),
        ("0.5", "\\frac12", 1.0),
        ("\\sqrt{4}", "2", 1.0),
        ("Lima", "Lima Peru", 2 / 3),
    ],
)
async def test_defect_10_auto_reads_numbers_as_numbers(gold, answer, accuracy):
    task = Task(id="m", messages=TASK.messages, answers=(gold,))
    found = await run_reward(build_reward(RewardConfig()), task, transcript(answer))
    assert found.accuracy == pytest.approx(accuracy)


async def test_many_formulas_at_once_do_not_deadlock():
    reward = build_reward(RewardConfig(answer="maths"))
    task = Task(id="m", messages=TASK.messages, answers=("x+1",))
    scores = await asyncio.gather(*(run_reward(reward, task, transcript(f"1+x+{n}-{n}")) for n in range(20)))
    assert all(found.accuracy == 1.0 for found in scores)


async def test_rewards_of_a_user_may_be_plain_functions():
    def half(task, transcript):
        return 0.5

    async def whole(task, transcript):
        return Score(reward=2.0, accuracy=1.0, parts={"mine": 2.0})

    assert await run_reward(build_reward(half), TASK, transcript()) == Score(reward=0.5, accuracy=0.5)
    assert (await run_reward(whole, TASK, transcript())).parts == {"mine": 2.0}


async def test_what_a_reward_does_wrong_names_task_and_reward():
    def breaks(task, transcript):
        raise KeyError("gold")

    def nan(task, transcript):
        return math.nan

    def text(task, transcript):
        return "good"

    def part(task, transcript):
        return Score(reward=1.0, accuracy=1.0, parts={"x": math.inf})

    def hangs(task, transcript):
        time.sleep(10)

    for reward, word in (
        (breaks, "KeyError"),
        (nan, "nan"),
        (text, "a number or a Score, not .good."),
        (part, "inf"),
        (hangs, "longer than 0.2 s"),
    ):
        with pytest.raises(RewardError, match=f"{reward.__name__}.*t1.*{word}"):
            await run_reward(build_reward(reward), TASK, transcript(), deadline_s=0.2)


@pytest.mark.parametrize(
    "value",
    [
        *(None, "good", "0.5", b"1", [], {}, math.nan, math.inf, -math.inf, 10**400, object, 1j),
        *(Score(reward=math.nan, accuracy=0), Score(reward=0, accuracy=math.inf), Score(reward=0, accuracy=1.5)),
        *(
            Score(reward=0, accuracy=-0.1),
            Score(reward="1", accuracy=0),
            Score(reward=0, accuracy=0, parts={"x": None}),
        ),
        Score(reward=0, accuracy=0, parts=3),
    ],
    ids=repr,
)
async def test_what_is_no_finite_number_ends_the_run_by_name(value):
    def odd(task, transcript):
        return value

    async def later(task, transcript):
        return value

    for reward in (odd, later):
        with pytest.raises(RewardError, match=f"the reward '{reward.__name__}' on task 't1' (raised|gave)"):
            await run_reward(build_reward(reward), TASK, transcript())


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError(), MemoryError()], ids=repr
)
async def test_a_reward_has_no_say_over_the_process(error):
    def raises(task, transcript):
        raise error

    async def later(task, transcript):
        raise error

    for reward in (raises,) if isinstance(error, KeyboardInterrupt) else (raises, later):
        with pytest.raises(RewardError, match=type(error).__name__):
            await run_reward(build_reward(reward), TASK, transcript(), deadline_s=5)


async def test_numbers_of_numpy_and_torch_are_numbers():
    import numpy
    import torch

    for one in (numpy.float32(0.5), numpy.float64(0.5), torch.tensor(0.5), True * 0.5):
        found = await run_reward(build_reward(lambda task, transcript, one=one: one), TASK, transcript())
        assert found == Score(reward=0.5, accuracy=0.5) and type(found.reward) is float
        given = Score(reward=one, accuracy=one, parts={"x": one, "reward": 3})
        found = await run_reward(build_reward(lambda task, transcript, given=given: given), TASK, transcript())
        assert (
            found == Score(reward=0.5, accuracy=0.5, parts={"x": 0.5, "reward": 3.0})
            and type(found.parts["x"]) is float
        )


async def test_a_reward_by_import_path(monkeypatch):
    module = types.ModuleType("rewards_of_a_user")
    module.fixed = lambda task, transcript, value=0.0: value
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = RewardConfig(use="rewards_of_a_user:fixed", options={"value": 0.25})
    assert (await score(config)).reward == 0.25
    for use in ("rewards_of_a_user:nope", "rewards_of_a_user", "nowhere_at_all:x"):
        with pytest.raises(ConfigError, match=r"reward\.use"):
            build_reward(RewardConfig(use=use))


class Weighted:
    def __init__(self, weight=1.0):
        self.weight = float(weight)

    def __call__(self, task, transcript):
        return self.weight


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        (lambda transcript: 0.0, {}, "task, transcript.*too many positional"),
        (lambda task, transcript, more: 0.0, {}, "missing a required argument: 'more'"),
        (lambda task, transcript, weight=1.0: weight, {"wieght": 2}, "wieght"),
        (Weighted, {"wieght": 2}, r"reward\.options: the reward cannot be set up: TypeError.*wieght"),
        (Weighted, {"weight": "much"}, r"reward\.options: the reward cannot be set up: ValueError.*much"),
    ],
)
def test_a_reward_that_cannot_be_called_is_refused_before_the_run(monkeypatch, made, options, words):
    module = types.ModuleType("rewards_of_a_user")
    module.made = made
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ConfigError, match=words):
        build_reward(RewardConfig(use="rewards_of_a_user:made", options=options))


async def test_a_reward_that_raises_is_told_with_the_line_of_its_own_file():
    def broken(task, transcript):
        return json.loads("no json")

    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(RewardError, match=rf"'broken'.*JSONDecodeError.*\(test_paper_reward\.py, line {line}\)"):
        await run_reward(build_reward(broken), TASK, transcript())


def test_configs_that_cannot_work_are_refused():
    for bad in ({"bonus": 0.1}, {"options": {"a": 1}}, {"wrong_format": 1.0}, {"answer": "maybe"}, {"bonsu": 1}):
        with pytest.raises(ConfigError):
            RewardConfig(**bad)
