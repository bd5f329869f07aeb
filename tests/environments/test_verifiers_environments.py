"""Environments of the real package verifiers, from its data set to an update. It is no dependency of the tests, since
it holds back `datasets`: `pip install 'verifiers==0.2.*'` runs them."""

from random import Random
from typing import Any

import pytest
from test_shipped_environments import END, call, check_update, rollout_of

from arpo.environments.verifiers import tasks

vf = pytest.importorskip("verifiers")


def _data() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"question": ["What is 2 + 3?"], "answer": ["5"]})


def add(x: int, y: int) -> int:
    """Adds two numbers.

    Args:
        x: one
        y: the other
    """
    return x + y


def right(completion: Any, answer: str) -> float:
    return float(answer in str(completion[-1].content))


def with_tools() -> Any:
    return vf.ToolEnv(tools=[add], dataset=_data(), rubric=vf.Rubric(funcs=[right]), max_turns=4)


class Hints(getattr(vf, "MultiTurnEnv", object)):  # type: ignore[misc]
    """Answers words with hints, and counts them in its state."""

    async def setup_state(self, state: Any) -> Any:
        state["hints"] = []
        return state

    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        state["hints"].append(str(messages[-1].content))
        return [{"role": "user", "content": f"Not {', '.join(state['hints'])}."}]

    @vf.stop
    async def found(self, state: Any) -> bool:
        return bool(state["trajectory"]) and "5" in str(state["trajectory"][-1]["completion"][-1].content)


def with_hints() -> Any:
    return Hints(dataset=_data(), rubric=vf.Rubric(funcs=[right]), max_turns=3)


def test_its_tools_and_its_rubric(tokenizer: Any) -> None:
    name = f"{__name__}:with_tools"
    [task] = tasks(name)

    def says(text: str, draw: Random) -> str:
        if "tool_response" in text:
            return f"{draw.choice(['It is 5.', 'Six.'])}{END}"
        return call("add", x=2, y=draw.choice([3, 4]))

    rollout = rollout_of(tokenizer, "verifiers", {"env": name}, says, task)
    assert "Adds two numbers." in rollout.grown.prompt_text()
    check_update(tokenizer, rollout)
    for leaf, said in rollout.transcripts.items():
        assert said.outcomes[0][0].text in ("5", "6")
        assert rollout.scored.scores[leaf].reward == float(said.turns[-1].text == "It is 5.")


def test_what_it_answers_to_words(tokenizer: Any) -> None:
    name = f"{__name__}:with_hints"
    [task] = tasks(name)

    def says(text: str, draw: Random) -> str:
        return f"{draw.choice(['5', '6', '7', '8'])}{END}"

    rollout = rollout_of(tokenizer, "verifiers", {"env": name}, says, task)
    check_update(tokenizer, rollout)
    for leaf, said in rollout.transcripts.items():  # the hints of a branch are those of its own turns alone
        words = [turn.text for turn in said.turns]
        last = rollout.grown.text(leaf).rpartition("Not ")[2].partition(".")[0]
        assert len(words) == 1 or last == ", ".join(words[:-1])
        assert rollout.scored.scores[leaf].reward == float(words[-1] == "5")
