"""Each environment that comes with arpo, from sampling to an update of a tiny model: scripted turns, a real episode."""

import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from test_environment_episodes import agent, config, grown

from arpo.core.credit import AdvantageConfig, credit
from arpo.core.tree import StopReason
from arpo.engines.scripted import Script
from arpo.environments.config import build_environment
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.options import UseWithOptions
from arpo.rollout.collect import Rollout
from arpo.tasks import Task
from arpo.tools.gateway import ToolGateway
from localhost import Asked, Reply, serving
from tiny_project import tiny_llama

END = "<|im_end|>"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>{END}"


def task(question: str = "?", answers: Sequence[str] = (), setup: Any = None, **values: Any) -> Task:
    return Task(
        id="one", messages=({"role": "user", "content": question},), answers=tuple(answers), setup=setup, **values
    )


def rollout_of(
    tokenizer: Any, use: str, options: dict[str, Any], says: Callable[[str, Random], str], task: Task, **values: Any
) -> Rollout:
    """A tree whose turns `says` writes from the text so far."""

    def play(prompt: Any, params: Any) -> Script:
        return Script(said=says(tokenizer.decode(list(prompt)), Random(f"{params.seed}/says")))

    who = agent(tokenizer, UseWithOptions(use=use, options=options), play)
    sizes = {"turn_tokens": 250, "branch_tokens": 6000, **values}
    rollout: Rollout = grown(who, config(**sizes), 5, task=task)
    assert not rollout.grown.failures and not rollout.grown.states.lost
    return rollout


def check_update(tokenizer: Any, rollout: Rollout) -> None:
    """The leaves differ in reward, and one update of a tiny model on them changes its weights."""
    rewards = {score.reward for score in rollout.scored.scores.values()}
    assert len(rewards) > 1 and len(rollout.scored.scores) == 6
    [credited] = credit([rollout.scored], AdvantageConfig())
    model = tiny_llama(tokenizer, max_position_embeddings=8192)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    learner = LocalLearner(
        model,
        loss=LossConfig(),
        optim=OptimConfig(lr=1e-3, schedule="constant"),
        num_updates=1,
        token_budget=8192,
        tree=True,
    )
    update = learner.update([credited])
    assert math.isfinite(update.metrics["loss"]) and not before.equal(model.model.layers[0].mlp.up_proj.weight)


def test_a_database(tokenizer: Any) -> None:
    setup = {
        "script": "create table stock(item text, kilos int); insert into stock values ('figs', 3);",
        "check": "select kilos from stock",
        "rows": [[5]],
    }

    def says(text: str, draw: Random) -> str:
        if "rows changed" in text:
            return f"done{END}"
        return call("sql", statement=f"update stock set kilos = kilos + {draw.choice([1, 2])}")

    rollout = rollout_of(tokenizer, "sql", {}, says, task(setup=setup))
    check_update(tokenizer, rollout)
    for leaf in rollout.transcripts:
        written = rollout.grown.text(leaf)  # of its own branch: one call, of 1 or of 2
        assert rollout.scored.scores[leaf].reward == float("kilos + 2" in written), written


@pytest.mark.parametrize(
    "statement", ["attach '/tmp/arpo-x.db' as x", "vacuum into '/tmp/arpo-y.db'", "pragma temp_store_directory = '/'"]
)
def test_a_database_reaches_no_file_and_no_end_of_time(tokenizer: Any, statement: str) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"

    def says(text: str, draw: Random) -> str:
        return f"x{END}" if "Error" in text else call("sql", statement=draw.choice([statement, endless]))

    rollout = rollout_of(tokenizer, "sql", {"seconds": 0.2}, says, task())
    texts = [o.text for seen in rollout.grown.tree.observations.values() for o in seen.outcomes]
    assert texts and all("not authorized" in t or "denied" in t or "interrupted" in t for t in texts)


def test_a_folder_with_a_shell(tokenizer: Any) -> None:
    setup = {"files": {"notes/a.txt": "one\n"}, "check": "grep -q two notes/a.txt"}

    def says(text: str, draw: Random) -> str:
        if "tool_response" in text:
            return f"done{END}"
        return call("shell", command=f"echo {draw.choice(['two', 'three'])} >> notes/a.txt; cat notes/a.txt")

    rollout = rollout_of(tokenizer, "shell", {}, says, task(setup=setup), deadline_s=60)
    check_update(tokenizer, rollout)
    for leaf, said in rollout.transcripts.items():
        [[result]] = list(said.outcomes)
        assert rollout.scored.scores[leaf].reward == float("two" in result.text), result.text


def test_a_scripted_user(tokenizer: Any) -> None:
    setup = {"says": ["My order is late.", "It is number 7."]}

    def says(text: str, draw: Random) -> str:
        return (
            f"{draw.choice(['It comes', 'I do not know'])} on Friday." if "number 7" in text else "Which one?"
        ) + END

    rollout = rollout_of(tokenizer, "user", {}, says, task(answers=["It comes on Friday"], setup=setup))
    check_update(tokenizer, rollout)
    leaf, said = next(iter(rollout.transcripts.items()))
    assert said.turns[0].text == "Which one?" and len(said.turns) == 2
    assert rollout.grown.tree.endings[leaf] is StopReason.FINISHED
    assert rollout.grown.text(leaf).count("It is number 7.") == 1


def test_a_user_played_by_an_endpoint(tokenizer: Any) -> None:
    """The user's model is asked with the roles the other way round, and each branch has its own conversation."""
    asked: list[Any] = []

    def answer(request: Asked) -> Reply:
        body = request.json
        asked.append(body)
        lines = [message["content"] for message in body["messages"][1:] if message["role"] == "user"]
        said = "I want figs." if len(lines) == 1 else "###STOP###" if "figs" in lines[-1] else "No: figs!"
        message = {"role": "assistant", "content": said}
        return Reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}})

    def says(text: str, draw: Random) -> str:
        return draw.choice(["Here are figs.", "Here are plums."]) + END

    with serving(answer) as site:
        options = {"endpoint": {"url": f"{site.url}/v1", "model": "user"}, "turns": 3}
        setup = {"instruction": "Buy figs."}
        rollout = rollout_of(tokenizer, "user", options, says, task(answers=["figs"], setup=setup), leaves=6, roots=4)
    assert all("Buy figs." in body["messages"][0]["content"] for body in asked)
    assert rollout.grown.prompt_text().count("I want figs.") == 1
    assert all(said.turns[-1].text for said in rollout.transcripts.values())
    if len({score.reward for score in rollout.scored.scores.values()}) > 1:
        check_update(tokenizer, rollout)


def test_puzzles_of_reasoning_gym(tokenizer: Any) -> None:
    pytest.importorskip("reasoning_gym")
    from arpo.tasks.gym import tasks

    first = tasks("basic_arithmetic", options={"size": 1, "seed": 3})[0]

    def says(text: str, draw: Random) -> str:
        return f"{draw.choice([first.answers[0], '-1'])}{END}"

    rollout = rollout_of(tokenizer, "puzzle", {"attempts": 2}, says, first)
    check_update(tokenizer, rollout)
    for leaf, said in rollout.transcripts.items():
        assert (rollout.scored.scores[leaf].reward == 1.0) == (said.answer == first.answers[0])


def test_a_text_environment_of_gymnasium(tokenizer: Any) -> None:
    pytest.importorskip("gymnasium")

    def says(text: str, draw: Random) -> str:
        return draw.choice(["right", "down", "I go down", "sideways"]) + END

    options = {"id": "FrozenLake-v1", "actions": ["left", "down", "right", "up"], "options": {"is_slippery": False}}
    rollout = rollout_of(tokenizer, "gymnasium", options, says, task(), max_calls=30)
    assert "SFFF" in rollout.grown.prompt_text().replace("\x1b[41mS\x1b[0m", "S")
    assert {StopReason.FINISHED} <= set(rollout.grown.tree.endings.values())


@pytest.mark.slow  # importing its games takes long
def test_a_game_of_textarena(tokenizer: Any) -> None:
    pytest.importorskip("textarena")

    def says(text: str, draw: Random) -> str:
        return f"[{draw.randint(1, 20)}]{END}"

    rollout = rollout_of(tokenizer, "textarena", {"id": "GuessTheNumber-v0"}, says, task(), max_calls=30)
    check_update(tokenizer, rollout)


def test_what_is_wrong_with_a_recipe_is_told() -> None:
    from arpo.errors import ConfigError

    for use, options, where in (
        ("sqll", {}, "environment.use"),
        ("arpo.tasks:Task", {}, "environment.use"),
        ("sql", {"rows": 3}, "environment.options"),
        ("gymnasium", {"id": "FrozenLake-v1", "actions": ["left"]}, "environment"),
    ):
        with pytest.raises(ConfigError) as told:
            build_environment(UseWithOptions(use=use, options=options), ToolGateway())
        assert told.value.where.startswith(where), told.value
