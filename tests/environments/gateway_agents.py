"""Agents as other libraries make them: `python gateway_agents.py NAME` answers the task of the environment variable
ARPO_TASK at OPENAI_BASE_URL. None of them knows arpo."""

import json
import os
import sys
from typing import Any


def parity(number: int) -> str:
    """Parity of a number.

    Args:
        number: which
    """
    return "odd" if number % 2 else "even"


FUNCTION = {
    "name": "parity",
    "description": "Parity of a number.",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def plain(question: str, client: Any = None, stream: bool = False) -> list[Any]:
    """A loop over the official client; the messages of the conversation."""
    from openai import OpenAI

    client = client or OpenAI()
    messages: list[Any] = [
        {"role": "system", "content": "Use the tool."},
        {"role": "user", "content": [{"type": "text", "text": question}]},
    ]
    while True:
        if stream:
            with client.chat.completions.stream(model="any", messages=messages, tools=TOOLS) as events:
                for _ in events:
                    pass
                said = events.get_final_completion().choices[0].message
        else:
            said = client.chat.completions.create(model="any", messages=messages, tools=TOOLS).choices[0].message
        messages.append(said.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        for call in said.tool_calls or ():
            result = parity(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not said.tool_calls:
            return messages


def bare(question: str) -> list[Any]:
    """A loop without any library."""
    from urllib.request import Request, urlopen

    messages: list[Any] = [{"role": "user", "content": question}]
    while True:
        body = json.dumps({"model": "any", "messages": messages, "tools": TOOLS}).encode()
        url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
        with urlopen(Request(url, body, {"Content-Type": "application/json"})) as reply:
            said = json.load(reply)["choices"][0]["message"]
        messages.append(said)
        for call in said.get("tool_calls", ()):
            result = parity(int(json.loads(call["function"]["arguments"])["number"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        if not said.get("tool_calls"):
            return messages


def pydantic_ai(question: str) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel

    return Agent(OpenAIChatModel("any"), tools=[parity], system_prompt="Use the tool.").run_sync(question)


if __name__ == "__main__":
    task = json.loads(os.environ["ARPO_TASK"])
    globals()[sys.argv[1]](task["messages"][-1]["content"])
