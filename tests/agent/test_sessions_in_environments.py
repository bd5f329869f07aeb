"""A conversation with an agent in an environment: the episode lasts over its questions."""

import json
from dataclasses import replace
from typing import Any

import pytest

import arpo
from agent_world import deployed
from arpo.agent.deployed import DeployedAgent
from arpo.chat.template import TemplateFormat
from arpo.core.tree import StopReason
from arpo.environments.config import build_environment
from arpo.tasks import Task
from arpo.tools.gateway import ToolGateway

END = "<|im_end|>"


class Shop(arpo.Environment):
    """Sells, and remembers what it has sold."""

    live = 0

    def reset(self, task: Task) -> list[dict[str, str]]:
        self.sold: list[str] = []
        type(self).live += 1
        return [{"role": "system", "content": "You sell."}, *map(dict, task.messages)]

    @arpo.tool
    def sell(self, item: str) -> str:
        """Sells an item.

        Args:
            item: which
        """
        if item == "nothing":
            raise LookupError("sold out")
        self.sold.append(item)
        return f"sold so far: {', '.join(self.sold)}"

    def fork(self) -> "Shop":
        other = type(self)()
        other.sold = list(self.sold)
        type(self).live += 1
        return other

    def close(self) -> None:
        if hasattr(self, "sold"):
            type(self).live -= 1


class Unforked(Shop):
    name = "shop"
    forks = "replay"


def seller(tokenizer: Any, made: Any) -> DeployedAgent:
    def play(prompt: Any, params: Any) -> str:
        text = tokenizer.decode(list(prompt)).rpartition("<|im_start|>user")[2]
        if "tool_response" in text:
            return f"{text.partition('so far: ')[2].splitlines()[0]}{END}"
        item = text.partition("Sell ")[2].partition("<|im_end|>")[0]
        return (
            f"<tool_call>{chr(10)}{json.dumps({'name': 'sell', 'arguments': {'item': item}})}{chr(10)}</tool_call>{END}"
        )

    gateway = ToolGateway()
    source = build_environment(made, gateway)
    sizes = {"turn_tokens": 80, "branch_tokens": 2000, "max_calls": 4}
    agent = deployed(tokenizer, play, *source.tools, form=TemplateFormat, run={"rollout": sizes})
    inner: Any = replace(agent.components.agent, environment=source, tool_gateway=gateway)  # type: ignore[type-var]
    agent.components = replace(agent.components, agent=inner)
    return agent


@pytest.mark.parametrize("made", [Shop, Unforked])
async def test_an_episode_lasts_over_several_questions(tokenizer: Any, made: Any) -> None:
    made.live = 0
    async with seller(tokenizer, made) as agent:
        assert str(await agent.ask("Sell tea")) == "tea"
        answer = await agent.ask("Sell rice")
        assert str(answer) == "tea, rice" and answer.ending is StopReason.FINISHED
        assert [message["role"] for message in agent.messages] == ["system", *["user", "assistant"] * 2]
        other = agent.session()
        assert str(await other.ask("Sell figs")) == "figs"
        assert str(await agent.ask("Sell plums")) == "tea, rice, plums"
        agent.forget()
        assert str(await agent.ask("Sell salt")) == "salt"
        assert made.live == 3  # one a conversation, and what lies between questions is one episode
    assert made.live == 0


async def test_samples_begin_where_the_last_answer_has_ended(tokenizer: Any) -> None:
    Shop.live = 0
    async with seller(tokenizer, Shop) as agent:
        await agent.ask("Sell tea")
        answer = await agent.ask("Sell rice", samples=4)
        assert dict(answer.votes) == {"tea, rice": 4} and Shop.live == 1
        assert str(await agent.ask("Sell figs")) == "tea, rice, figs"
    assert Shop.live == 0
