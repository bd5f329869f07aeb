"""A user who talks with the agent, scripted or played by a model, in the manner of tau-bench (arXiv 2406.12045).

The agent sees what the user says, and has the recipe's tools or those of a class derived from this one.
"""

from collections.abc import Mapping
from typing import Any

from arpo.endpoint.client import Endpoint, text_of
from arpo.endpoint.config import EndpointConfig
from arpo.environments import AgentTurn, Environment, Step, setup_of
from arpo.tasks import Task

STOP = "###STOP###"
SYSTEM = (
    "You are a user who talks with a support agent. Your instruction: {instruction}\n"
    "Write one line at a time, as a person would. Do not give away the whole instruction at once, only what is needed "
    "for the next step, and make nothing up that it does not say. When it is fulfilled, write " + STOP + " alone."
)


class UserEnvironment(Environment):
    """A task's `setup` is `{says: [...]}` for a scripted user, line by line, or `{instruction: ...}` for a user played
    by the model at `endpoint` (`{url: ..., model: ...}`).

    The episode ends when the script has, when the user writes the stop word, or after `turns` of the agent's words. It
    is then worth 1 where each of the task's answers stood in the agent's words; derive from this class for another
    `worth()`.
    """

    name = "user"

    def __init__(self, endpoint: Mapping[str, Any] | None = None, turns: int = 10, max_tokens: int = 256) -> None:
        self.turns, self.max_tokens = turns, max_tokens
        self.endpoint = EndpointConfig(**endpoint) if endpoint is not None else None
        self.setup: Mapping[str, Any] = {}
        self.dialogue: list[dict[str, str]] = []  # as the user's model sees it: the agent is its `user`

    async def reset(self, task: Task) -> str:
        self.task = task
        self.setup = setup_of(task)
        if "says" not in self.setup and self.endpoint is None:
            raise ValueError("a task's setup has `says`, or an `instruction` for the model at `endpoint`")
        self.dialogue = [{"role": "user", "content": "Hi! How can I help you today?"}]
        return await self._says()

    async def step(self, turn: AgentTurn) -> Step:
        if turn.calls:
            return Step()
        self.dialogue.append({"role": "user", "content": turn.said})
        over = sum(line["role"] == "user" for line in self.dialogue) > self.turns
        said = STOP if over else await self._says()
        return Step(done=True, reward=self.worth()) if STOP in said else Step(message=said)

    def worth(self) -> float:
        """The reward of the episode."""
        told = "\n".join(line["content"] for line in self.dialogue[1:] if line["role"] == "user")
        return float(bool(self.task.answers) and all(answer in told for answer in self.task.answers))

    async def _says(self) -> str:
        if "says" in self.setup:
            number = sum(line["role"] == "assistant" for line in self.dialogue)
            said = str(self.setup["says"][number]) if number < len(self.setup["says"]) else STOP
        else:
            said = await self._asked()
        self.dialogue.append({"role": "assistant", "content": said})
        return said

    async def _asked(self) -> str:
        """The next line by the model. A client of its own: episodes may live on different event loops."""
        assert self.endpoint is not None
        system = {"role": "system", "content": SYSTEM.format(instruction=self.setup.get("instruction", ""))}
        endpoint = Endpoint(self.endpoint, "user's model")
        try:
            reply = await endpoint.chat_once(
                [system, *self.dialogue], max_tokens=self.max_tokens, seed=self.random.getrandbits(31)
            )
        finally:
            await endpoint.close()
        return text_of(reply.message.get("content")).rpartition("</think>")[2].strip()
