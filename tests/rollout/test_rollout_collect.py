"""Collecting: data order, a bound on what is under way, and records that hold all of it."""

import asyncio
from itertools import count

import pytest

from arpo.core import StepStats, decode, encode, replay
from arpo.core.branching import Decision
from arpo.core.credit import AdvantageConfig, credit
from arpo.errors import RewardError
from arpo.rollout.collect import collect, record_of
from small_world import ANSWER, Script, Search, agent, config, right, rollouts, task, unsure
from virtual_time import run


def lasting(tokenizer, seconds):
    """An agent that takes `seconds[n]` for task n."""

    def play(prompt, params):
        number = int(tokenizer.decode(list(prompt)).split("country ")[1].split("?")[0])
        return Script(said=ANSWER, delay_s=seconds[number])

    return agent(tokenizer, play)


def collecting(who, tasks, in_flight, reward=right, rules=None, **more):
    rules = rules or config(leaves=1, roots=1)
    return collect(who, tasks, reward, rules, stats=StepStats(step=0), seed=0, in_flight=in_flight, **more)


@pytest.mark.parametrize("in_flight", [1, 2, 3, 6, 50])
def test_trees_come_in_data_order_whatever_finishes_first(tokenizer, in_flight):
    who = lasting(tokenizer, [5, 1, 9, 0, 3, 2])

    async def ids():
        return [one.task.id async for one in collecting(who, map(task, range(6)), in_flight)]

    assert run(ids()) == [f"task-{n}" for n in range(6)]


def test_no_more_trees_are_started_than_may_be_in_flight(tokenizer):
    who = lasting(tokenizer, [3, 1, 1, 1, 1, 1, 1, 1])
    asked: list[int] = []

    def tasks():
        for number in range(8):
            asked.append(number)
            yield task(number)

    async def most():
        seen = 0
        trees = collecting(who, tasks(), 3)
        async for _ in trees:
            seen += 1
            assert len(asked) <= seen + 2
            assert who.engine.live <= 3
            await asyncio.sleep(0.5)
        return seen

    assert run(most()) == 8
    with_one = lasting(tokenizer, [1] * 4)

    async def seconds():
        async for _ in collecting(with_one, map(task, range(4)), 1):
            pass
        return asyncio.get_running_loop().time()

    assert run(seconds()) == pytest.approx(4)


def test_trees_of_a_batch_grow_side_by_side(tokenizer):
    async def seconds():
        async for _ in collecting(lasting(tokenizer, [7, 5, 9, 3]), map(task, range(4)), 4):
            pass
        return asyncio.get_running_loop().time()

    assert run(seconds()) == pytest.approx(9)


def test_finished_trees_are_scored_while_slow_ones_grow(tokenizer):
    async def score(one, said):
        await asyncio.sleep(5)
        return await right(one, said)

    async def seconds():
        who, rules = lasting(tokenizer, [9, 1, 2, 3]), config(leaves=2, roots=2, rule="none")
        await rollouts(who, rules, *map(task, range(4)), reward=score)
        return asyncio.get_running_loop().time()

    assert run(seconds()) == pytest.approx(9 + 5), "only the slowest tree's own score is waited for"


def test_collections_that_share_an_engine_do_not_grow_more_than_there_is_room_for(tokenizer):
    who, room = lasting(tokenizer, [1] * 8), asyncio.Semaphore(2)

    async def one(tasks):
        return [each.task.id async for each in collecting(who, tasks, 4, room=room)]

    async def both():
        first, second = await asyncio.gather(one(map(task, range(4))), one(map(task, range(4, 8))))
        return first, second, asyncio.get_running_loop().time()

    first, second, seconds = run(both())
    assert first + second == [f"task-{number}" for number in range(8)] and seconds == pytest.approx(4)


def test_stopping_early_cancels_what_is_growing(tokenizer):
    who = lasting(tokenizer, [1] + [1e6] * 5)

    async def first():
        trees = collecting(who, map(task, count()), 4)
        one = await anext(trees)
        await trees.aclose()
        return one.task.id, who.engine.live, who.engine.cancelled, asyncio.get_running_loop().time()

    assert run(first()) == ("task-0", 0, 3, 1.0)


def test_no_tasks_no_trees(tokenizer):
    assert run(rollouts_of(agent(tokenizer, unsure), [])) == []


async def rollouts_of(who, tasks):
    return [one async for one in collecting(who, tasks, 4)]


def test_a_reward_error_comes_after_the_trees_before_it(tokenizer):
    async def reward(asked, said):
        return float("nan") if asked.id == "task-2" else await right(asked, said)

    seen = []

    async def all_of_them():
        async for one in collecting(lasting(tokenizer, [4, 3, 0, 5]), map(task, range(4)), 4, reward):
            seen.append(one.task.id)

    with pytest.raises(RewardError, match=r"task-2.*nan"):
        run(all_of_them())
    assert seen == ["task-0", "task-1"]


def test_an_error_in_the_tasks_cancels_what_is_growing(tokenizer):
    who = lasting(tokenizer, [1e6] * 5)

    def tasks():
        yield task(0)
        raise OSError("the file is gone")

    async def all_of_them():
        return [one async for one in collecting(who, tasks(), 4)]

    with pytest.raises(OSError, match="gone"):
        run(all_of_them())
    assert who.engine.live == 0


def test_scores_and_transcripts_are_those_of_the_leaves(tokenizer):
    (one,) = run(rollouts(agent(tokenizer, unsure), config(leaves=8, roots=2), seed=5))
    for branch in one.grown.tree.branches():
        said = one.transcripts[branch.leaf]
        assert said.turns == tuple(one.grown.chat.parse(turn.tokens) for turn in branch.turns)
        assert [len(o) for o in said.outcomes] == [len(turn.calls) for turn in branch.turns[: len(said.outcomes)]]
        assert said.ending == branch.ending.value and said.states == {}
        assert one.scored.scores[branch.leaf].accuracy == float(said.answer == "Lima")


@pytest.mark.parametrize("rule", ["none", "fixed", "random", "paper", "released", "threshold", "aepo"])
@pytest.mark.parametrize("roots", [2, "pilot"])
def test_a_record_replays_to_the_same_tree(tokenizer, rule, roots):
    trouble = iter([True, False] * 100)

    def play(prompt, params):
        said = unsure(prompt, params).said
        return Script(said=said, fails_after=1 if next(trouble) else None)

    for one in run(
        rollouts(agent(tokenizer, play), config(rule=rule, roots=roots, leaves=8, retries=3), task(0), task(1))
    ):
        (credited,) = credit([one.scored], AdvantageConfig())
        for record in (record_of(one), record_of(one, credited)):
            (back,) = decode(encode(record))
            assert back == record
            assert replay(back) == one.grown.tree
        assert back.credited.advantages == credited.advantages
        assert set(back.scores) == set(one.scored.scores)


def test_a_record_of_an_own_rule_replays_with_that_rule(tokenizer):
    class Twice:
        def __call__(self, tip, stats, random):
            return Decision(wanted=2, score=tip.head)

        def most(self, depth):
            return 2

    (one,) = run(rollouts(agent(tokenizer, unsure), config(rule=Twice(), leaves=6)))
    (back,) = decode(encode(record_of(one)))
    assert replay(back, Twice()) == one.grown.tree


def test_a_record_says_what_a_reader_needs(tokenizer):
    def play(prompt, params):
        return Script(said="<think>Peru.</think>" + ANSWER, fails_after=1 if next(tries) == 0 else None)

    tries = count()
    (one,) = run(
        rollouts(agent(tokenizer, play, Search()), config(leaves=1, roots=1), task(4, metadata={"family": "capitals"}))
    )
    (back,) = decode(encode(record_of(one)))
    notes = back.notes
    assert (
        notes["task"]["question"] == "Which city is the capital of country 4?" and notes["task"]["family"] == "capitals"
    )
    assert notes["texts"] == {"0": "<think>Peru.</think>" + ANSWER} and notes["answers"] == {"0": "Lima"}
    assert notes["failures"] == ["0: the script fails after 1 tokens"]
    assert "country 4" in notes["prompt"]
