"""Episodes of environments in rollouts: every branch has its own, however it came by it; crashes have a name."""

import asyncio
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arpo
from arpo.chat.tags import TagFormat
from arpo.chat.template import TemplateFormat
from arpo.core import StepStats, StopReason
from arpo.core.record import decode, encode, replay
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.environments.config import build_environment
from arpo.rewards.environment import environment_reward
from arpo.rollout.agent import Agent
from arpo.rollout.collect import collect, record_of
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task
from arpo.tools.config import ToolConfig, ToolsConfig, build_entries
from arpo.tools.gateway import ToolGateway, build_gateway

TASK = Task(id="count", messages=({"role": "user", "content": "unused"},), answers=(), setup=3)


class Count(arpo.Environment):
    """Reach a total by calls, words or both; every turn adds noise from the episode's own random numbers."""

    closed = 0

    def reset(self, task: Task) -> str:
        self.start = self.random.randint(0, 1)
        self.log: list[str] = []
        return f"Count from {self.start} to {task.setup}."

    @arpo.tool
    def add(self, number: int) -> str:
        """Adds.

        Args:
            number: how much
        """
        self.log.append(f"add {number} {self.random.randint(0, 9)}")
        return " ".join(self.log)

    @arpo.tool
    def undo(self, why: str) -> str:
        """Takes the last back."""
        self.log.pop()  # raises where there is none, and the model reads why
        return " ".join(self.log)

    def step(self, turn: arpo.AgentTurn) -> arpo.Step:
        if not turn.calls:
            self.log.append(f"said {turn.said[:20]} {self.random.randint(0, 9)}")
        done = len(self.log) >= 3
        return arpo.Step(
            message=None if turn.calls else f"seen {len(self.log)}", done=done, reward=float(len(self.log))
        )

    def close(self) -> None:
        type(self).closed += 1


class Replayed(Count):
    name = "count"
    forks = "replay"


class Uncopied(Count):
    """`fork` cannot copy a lock, which is found out in the run."""

    name = "count"

    def reset(self, task: Task) -> str:
        self.lock = threading.Lock()
        return super().reset(task)


class Alone(Count):
    name = "count"
    forks = "never"


def agent(
    tokenizer: Any, environment: Any, play: Any, form: Any = TemplateFormat, gateway: ToolGateway | None = None
) -> Agent:
    gateway = gateway or ToolGateway()
    source = build_environment(environment, gateway)
    return Agent(
        engine=ScriptedEngine(play, tokenizer),
        tools=source.tools,
        format=lambda tools: form(tokenizer, tools),
        vocab_size=len(tokenizer),
        tool_gateway=gateway,
        environment=source,
    )


def play_for(tokenizer: Any, form: Any = TemplateFormat) -> Any:
    def play(prompt: Any, params: Any) -> Script:
        draw = Random(f"{params.seed}/says")
        name, argument = draw.choice([("add", {"number": draw.randint(0, 9)}), ("undo", {"why": "x"})])
        if form is TagFormat:
            called = f"<think>t</think><{name}>{next(iter(argument.values()))}</{name}>"
            word = f"<think>t</think><answer>{draw.randint(0, 99)}</answer>"
        else:
            import json

            called = f"<tool_call>\n{json.dumps({'name': name, 'arguments': argument})}\n</tool_call><|im_end|>"
            word = f"{draw.randint(0, 99)}<|im_end|>"
        return Script(said=draw.choice([called, word]))

    return play


def config(**values: Any) -> RolloutConfig:
    sizes = {"head": 2, "turn_tokens": 60, "branch_tokens": 1500, "max_calls": 5, "leaves": 6, "roots": 2}
    return RolloutConfig(**{**sizes, "rule": {"rule": "random", "rates": [1.0]}, **values})


def grown(who: Agent, rules: RolloutConfig, seed: int = 0, reward: Any = environment_reward, task: Task = TASK) -> Any:
    async def one() -> Any:
        stats = StepStats(step=1)
        return [r async for r in collect(who, [task], reward, rules, stats=stats, seed=seed, in_flight=2)]

    return asyncio.run(one())[0]


def shape(rollout: Any) -> Any:
    tree = rollout.grown.tree
    texts = {
        place: [(o.status, o.text, o.tool) for o in seen.outcomes] + [rollout.grown.observation_text(place)]
        for place, seen in tree.observations.items()
    }
    turns = {place: list(turn.tokens) for place, turn in tree.turns.items()}
    return turns, texts, tree.endings, rollout.scored.scores, rollout.grown.states.steps


def test_calls_on_an_episode_are_never_cached(tokenizer: Any, tmp_path: Path) -> None:
    offered = ToolConfig(use="search", options={"documents": "atlas"}, cache=True)
    config_of_tools = ToolsConfig(offered=(offered,), cache={"file": str(tmp_path / "cache.db")})
    cached = build_gateway(config_of_tools, build_entries(config_of_tools.offered))
    assert cached.cache is not None
    plain = grown(agent(tokenizer, Count, play_for(tokenizer)), config(), 3)
    beside = grown(agent(tokenizer, Count, play_for(tokenizer), gateway=cached), config(), 3)
    assert shape(plain) == shape(beside)
    assert any(seen.outcomes for seen in beside.grown.tree.observations.values())
    assert cached.cache.store.totals()[0] == 0, "nothing is kept of them"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), form=st.sampled_from([TemplateFormat, TagFormat]))
def test_copied_and_repeated_episodes_are_the_same(tokenizer: Any, seed: int, form: Any) -> None:
    rollouts = {
        made: grown(agent(tokenizer, made, play_for(tokenizer, form), form), config(), seed)
        for made in (Count, Replayed, Uncopied)
    }
    first = rollouts[Count]
    assert shape(first) == shape(rollouts[Replayed]) == shape(rollouts[Uncopied])
    assert len(first.grown.tree.endings) == 6
    assert first.grown.states.episodes.count["replayed"] == 0
    for leaf, said in first.transcripts.items():  # the state at a leaf is that of its own turns alone
        steps = [first.grown.states.steps.get(leaf[:depth]) for depth in range(1, len(leaf) + 1)]
        assert said.rewards == tuple(step.reward if step else 0.0 for step in steps)
        if first.grown.tree.endings[leaf] is StopReason.FINISHED:
            assert len(said.states["count"].log) >= 3


def test_branches_share_their_trunk_and_nothing_else(tokenizer: Any) -> None:
    Count.closed = 0
    rollout = grown(agent(tokenizer, Count, play_for(tokenizer)), config(leaves=8, roots=2), 3)
    tree = rollout.grown.tree
    assert any(len(place) > 1 and place[-1] > 0 for place in tree.turns), "no sibling in this tree"
    episodes = rollout.grown.states.episodes
    assert episodes.count["episodes"] == 1
    assert Count.closed == episodes.count["forked"] + 2  # the first, and one that checks options
    assert rollout.grown.prompt_text().count("Count from") == 1
    record = record_of(rollout)
    [read] = decode(encode(record))
    assert replay(read) == tree
    assert read.notes["environment"]


def test_an_environment_s_own_code_calls_its_tools_as_methods(tokenizer: Any) -> None:
    class Polite(Count):
        name = "count"

        @arpo.tool
        def add(self, number: int) -> str:
            """Adds.

            Args:
                number: how much
            """
            return f"please: {super().add(number)}"

        def step(self, turn: arpo.AgentTurn) -> arpo.Step:
            return arpo.Step(message=self.add(number=7), done=len(self.log) >= 3)

    tree = grown(agent(tokenizer, Polite, play_for(tokenizer)), config(), 3).grown.tree
    texts = [outcome.text for seen in tree.observations.values() for outcome in seen.outcomes if outcome.tool == "add"]
    assert any(text.startswith("please: ") for text in texts) and not any("Error" in text for text in texts)
    assert StopReason.FINISHED in tree.endings.values()


def test_an_episode_that_cannot_be_shared_does_not_branch(tokenizer: Any) -> None:
    rollout = grown(agent(tokenizer, Alone, play_for(tokenizer)), config(leaves=4, roots=2), 3)
    assert {place[:1] for place in rollout.grown.tree.endings} == {(0,), (1,), (2,), (3,)}
    assert (
        rollout.grown.states.episodes.count["episodes"] == 4
    )  # one a trajectory, the one that began the tree included


class Crowd(Count):
    """Counts how many of its resets, steps and calls are under way at once; each waits until as many as may run do."""

    name = "count"
    concurrency = 2
    inside = 0
    most = 0
    entered = 0
    lock = threading.Condition()

    def _enter(self) -> None:
        made = type(self)
        with made.lock:
            made.inside, made.entered = made.inside + 1, made.entered + 1
            made.most = max(made.most, made.inside)
            made.lock.notify_all()
            made.lock.wait_for(lambda: made.most >= 2, timeout=1)
            made.inside -= 1

    def reset(self, task: Task) -> str:
        self._enter()
        return super().reset(task)

    @arpo.tool
    def add(self, number: int) -> str:
        """Adds.

        Args:
            number: how much
        """
        self._enter()
        return super().add(number)

    def step(self, turn: arpo.AgentTurn) -> arpo.Step:
        self._enter()
        return super().step(turn)


def test_concurrency_bounds_resets_steps_and_calls_of_all_episodes(tokenizer: Any) -> None:
    who = agent(tokenizer, Crowd, play_for(tokenizer))

    async def two() -> list[Any]:
        tasks = [TASK, Task(id="other", messages=TASK.messages, answers=(), setup=3)]
        trees = collect(who, tasks, environment_reward, config(), stats=StepStats(step=1), seed=0, in_flight=2)
        return [rollout async for rollout in trees]

    rollouts = asyncio.run(two())
    assert [len(rollout.grown.tree.endings) for rollout in rollouts] == [6, 6]
    assert Crowd.entered > 30 and Crowd.inside == 0
    assert Crowd.most == 2


class Broken(Count):
    name = "count"
    at = "step"

    def reset(self, task: Task) -> str:
        if self.at == "reset":
            raise RuntimeError("no world")
        return super().reset(task)

    def step(self, turn: arpo.AgentTurn) -> arpo.Step:
        if self.at == "step" and len(self.log) > 1:
            raise RuntimeError("no step")
        if self.at == "late" and len(self.log) > 1:
            threading.Event().wait(0.6)
        return super().step(turn) if self.at != "word" else "word"  # type: ignore[return-value]

    def fork(self) -> "Broken":
        if self.at == "fork" and self.log:
            raise RuntimeError("no copy")
        return super().fork()


@pytest.mark.parametrize("at", ["reset", "step", "late", "word", "fork"])
def test_a_crash_has_a_name_and_no_reward(tokenizer: Any, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "at", at)
    deadline_s = 0.3 if at == "late" else 300.0
    rollout = grown(agent(tokenizer, Broken, play_for(tokenizer)), config(deadline_s=deadline_s), 1)
    endings = rollout.grown.tree.endings
    assert len(endings) == 6
    failed = [leaf for leaf, ending in endings.items() if ending is StopReason.ENVIRONMENT_FAILED]
    assert failed and not set(failed) & set(rollout.scored.scores)
    reasons = {"reset": "reset raised RuntimeError: no world", "late": "took longer than 0.3 s"}
    reason = {**reasons, "fork": "no copy"}.get(at, "step")
    assert any(reason in why for _, why in rollout.grown.failures)


class Drifting(Replayed):
    """Takes its randomness from elsewhere, so that a trunk cannot be repeated."""

    def step(self, turn: arpo.AgentTurn) -> arpo.Step:
        return arpo.Step(message=str(id(object()) ^ Random().getrandbits(40)), done=len(turn.text) < 1)


def test_a_trunk_that_does_not_repeat_is_told(tokenizer: Any) -> None:
    rollout = grown(agent(tokenizer, Drifting, play_for(tokenizer)), config(), 3)
    lost = [why for _, why in rollout.grown.failures]
    assert lost and all("does not come out the same again" in why for why in lost)


def test_limits_of_turns_and_what_turn_estimators_read(tokenizer: Any) -> None:
    rollout = grown(agent(tokenizer, Endless, play_for(tokenizer)), config(max_calls=3), 0)
    endings = set(rollout.grown.tree.endings.values())
    assert endings == {StopReason.CALL_LIMIT}
    for leaf, score in rollout.scored.scores.items():
        rewards = rollout.transcripts[leaf].rewards
        assert score.reward == pytest.approx(sum(rewards))
        if score.turns:  # beside the reward of the leaf they sum to the rewards of the turns from each turn on
            for depth in range(len(leaf)):
                assert sum(score.turns[depth:]) + score.reward == pytest.approx(sum(rewards[depth:]))


class Endless(Count):
    name = "count"

    def step(self, turn: arpo.AgentTurn) -> arpo.Step:
        return arpo.Step(message="on", reward=1.0)
