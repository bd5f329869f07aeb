"""Rewards of length, several rewards, and rewards that ask a service: a judge, or one of a user's own."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_paper_reward import TASK, transcript

import arpo
from arpo.assembly.components import Setting, build_setting
from arpo.chat import Limits
from arpo.core.score import Score
from arpo.core.tree import StopReason
from arpo.errors import ConfigError, ProviderError, RewardError, ToolsStoppedError
from arpo.rewards.boundary import run_reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.rewards.length import ramp
from arpo.rewards.service import ServiceReward
from arpo.rollout.collect import record_of
from arpo.tools import ToolBase, ToolResult
from arpo.view.trees import tree_answer
from localhost import Asked, Reply, serving
from small_world import ANSWER, Script, agent, config, rollouts
from virtual_time import run

LIMITS = Limits(turn_tokens=10, branch_tokens=100, max_calls=3)


def long(read=(20, 50), written=(8, 40), **more):
    return replace(transcript(**more), read=read, written=written, limits=LIMITS)


@given(st.integers(0, 300), st.integers(1, 200), st.data())
def test_the_ramp_falls_from_0_to_minus_1_over_the_cache(length, most, data):
    cache = data.draw(st.integers(1, most))
    slow = -sum(1 / cache for at in range(length) if most - cache <= at < most)
    assert ramp(length, most, cache) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, -0.5), ({"cache": 10}, 0.0), ({"of": "turn", "cache": 10}, -1.0), ({"of": "written", "most": 50}, -0.8)],
)
async def test_overlong_measures_branch_turn_or_what_was_written(options, expected):
    reward = build_reward(RewardConfig(use="overlong", options=options))
    assert (await run_reward(reward, TASK, long())).reward == pytest.approx(expected)
    for wrong in ({"of": "words"}, {"cache": 101}, {"of": "written"}):
        with pytest.raises(RewardError, match=r"reward\.options"):
            await run_reward(build_reward(RewardConfig(use="overlong", options=wrong)), TASK, long())


def stepped(task, transcript, *, size=1.0):
    return Score(reward=size, accuracy=0.5, parts={"steps": 2.0}, turns=(0.25, size))


async def test_a_sum_shows_each_of_its_rewards():
    options = {"paper": 1, "overlong": 0.5, f"{__name__}:stepped": {"weight": 2, "size": 3.0}}
    score = await run_reward(build_reward(RewardConfig(answer="exact", use="sum", options=options)), TASK, long())
    assert score.reward == pytest.approx(1 - 0.5 * 0.5 + 2 * 3) and score.accuracy == 1.0
    assert score.turns == pytest.approx((0.5, 6.0))
    assert score.parts == {
        "format": 1.0,
        "paper": 1.0,
        "paper/answer": 1.0,
        "paper/bonus": 0.0,
        "overlong": -0.5,
        "stepped": 3.0,
        "stepped/steps": 2.0,
    }


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "reward.options"),
        ({"paper": "much"}, "reward.options.paper"),
        ({"paper": {"answer": "f1"}}, "reward.options.paper"),
        ({"overlnog": 1}, "reward.options.overlnog.use"),
        ({"paper": 1, "judge": {"weight": 1, "model": "m"}}, "reward.options.judge.url"),
        ({"overlong": {"cash": 3}}, "reward.options.overlong.use"),
    ],
)
def test_a_wrong_sum_is_named(options, where):
    with pytest.raises(ConfigError) as caught:
        build_reward(RewardConfig(use="sum", options=options))
    assert caught.value.where == where


# --- a service of a user's own


class Oracle(ToolBase):
    """Answers after it was down `failures` times."""

    name, description, schema, cacheable = "oracle", "", {"type": "object"}, True

    def __init__(self, failures: float) -> None:
        self.failures, self.calls = failures, 0

    async def __call__(self, arguments, context):
        self.calls += 1
        if self.calls <= self.failures:
            raise ProviderError("503 Service Unavailable", provider="oracle")
        return ToolResult(text=str(len(str(arguments["answer"]))), cost=0.5)


class Lengthy(ServiceReward):
    def __init__(self, failures=0.0):
        self.services = (Oracle(failures),)

    async def __call__(self, task, transcript):
        return Score(reward=float(await self.ask(task, "oracle", answer=transcript.answer)), accuracy=0.0)


def setting(tmp_path: Path, **options: object) -> tuple[Setting, Oracle]:
    recipe = {
        "data": {"train": {}},
        "tools": {"offered": [], "cache": {"file": str(tmp_path / "cache.sqlite")}},
        "reward": {"use": f"{__name__}:Lengthy", "options": options},
    }
    made = build_setting(arpo.Run(**recipe))  # type: ignore[arg-type]
    return made, made.reward.asks[0].services[0]  # type: ignore[attr-defined]


def test_a_service_that_is_down_pauses_the_run_and_is_accounted(tmp_path):
    made, oracle = setting(tmp_path, failures=12, cache=False, limits={"patience_s": 4000})
    said: list[str] = []
    made.tool_gateway.tell = lambda text, level: said.append(text)

    async def several():
        texts = ["Lima", "Cusco", "Lima"]
        scores = await asyncio.gather(*(run_reward(made.reward, TASK, transcript(t), deadline_s=1) for t in texts))
        return [s.reward for s in scores]

    assert run(several()) == [4.0, 5.0, 4.0]
    assert oracle.calls == 15
    assert made.tools == () and any("paused: oracle" in text for text in said)
    usage = made.tool_gateway.usage["oracle"]
    assert (usage.asked, usage.executed, usage.cost) == (3, 3, 1.5)


def test_a_service_that_stays_down_stops_the_run_as_a_tool_does(tmp_path):
    made, _ = setting(tmp_path, cache=False, failures=1e9, limits={"patience_s": 50, "retries": 1})
    with pytest.raises(ToolsStoppedError, match="oracle"):
        run(run_reward(made.reward, TASK, transcript(), deadline_s=1))


def test_a_budget_ends_what_a_service_is_asked(tmp_path):
    made, _ = setting(tmp_path, cache=False, limits={"calls": 2})

    async def thrice():
        return [(await run_reward(made.reward, TASK, transcript())).reward for _ in range(3)]

    with pytest.raises(ToolsStoppedError, match="budget for calls of oracle"):
        run(thrice())


class Failing(ServiceReward):
    """Fails for one leaf of two."""

    count = 0

    async def __call__(self, task, transcript):
        Failing.count += 1
        if Failing.count % 2:
            raise ProviderError("no verdict", provider="oracle")
        return Score(reward=1.0, accuracy=1.0, notes={"oracle": "why"})


def test_a_leaf_that_a_service_cannot_judge_has_no_score(tokenizer):
    who = agent(tokenizer, lambda prompt, params: Script(said=ANSWER))
    (rollout,) = run(rollouts(who, config(leaves=4, roots=4), reward=Failing()))
    assert len(rollout.scored.scores) == 2 and len(rollout.grown.tree.leaves()) == 4
    assert set(rollout.grown.tree.endings.values()) == {StopReason.FINISHED}
    record = record_of(rollout)
    notes, leaves = record.notes, tree_answer(record, None)["leaves"]
    assert [leaf["reasons"] for leaf in leaves if leaf["reward"] is not None] == [{"oracle": "why"}] * 2
    assert [*notes["scores"].values()] == [{"oracle": "why"}] * 2 and "no verdict" in notes["failures"][0]


# --- the judge


def verdict(asked: Asked) -> Reply:
    answer = asked.json["messages"][1]["content"].rpartition("Answer to be graded:\n")[2]
    word = {
        "final_answer": answer,
        "reason": "compared",
        "verdict": "right" if "lima" in answer.casefold() else "wrong",
    }
    message = {"message": {"role": "assistant", "content": json.dumps(word)}, "finish_reason": "stop"}
    return Reply({"choices": [message], "usage": {"prompt_tokens": 10**6, "completion_tokens": 0}})


async def test_a_judge_is_one_line_of_a_recipe(tmp_path, monkeypatch):
    busy = iter([Reply({}, status=503)])
    with serving(lambda asked: next(busy, None) or verdict(asked)) as site:
        options = {"url": f"{site.url}/v1", "model": "m", "prices": {"prompt": 2.0}, "rule": "exact"}
        recipe = {
            "data": {"train": {}},
            "tools": {"cache": {"file": str(tmp_path / "cache.sqlite")}},
            "reward": {"use": "judge", "options": options},
        }
        for start in range(2):
            made = build_setting(arpo.Run(**recipe))
            for answer, reward in (("It is Lima.", 1.0), ("Cusco", 0.0), ("It is Lima.", 1.0), ("", 0.0)):
                score = await run_reward(made.reward, TASK, transcript(answer))
                assert score.reward == score.accuracy == score.parts["judge"] == reward
                assert score.parts["rule"] == 0.0 and score.notes["judge"].startswith("right" if reward else "wrong")
            assert (await run_reward(made.reward, TASK, transcript("Lima", formed=False))).reward == -1.0
            usage = made.tool_gateway.usage["judge"]
            assert usage.executed == (0 if start else 3) and usage.cost == (0 if start else 6.0)
        assert len(site.asked) == 4, "one failed, three answers; the second start finds them all in the cache"
        trusting = {**recipe, "reward": {"use": "judge", "options": {**options, "trust_rule": True}}}
        assert (await run_reward(build_setting(arpo.Run(**trusting)).reward, TASK, transcript("lima"))).accuracy == 1.0
        assert len(site.asked) == 4
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        keyed = {**recipe, "reward": {"use": "judge", "options": {**options, "key_env": "NO_SUCH_KEY"}}}
        with pytest.raises(ConfigError, match=r"reward\.options\.key_env"):
            build_setting(arpo.Run(**keyed))
