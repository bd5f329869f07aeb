"""The agent as a tool of editors and assistants: an MCP server with the tool `ask` (extra `mcp`).

Knows the official SDK. The server speaks stdio (`arpo serve --mcp`), or HTTP at /mcp beside the completions.
"""

import asyncio
from collections import OrderedDict
from contextlib import aclosing
from uuid import uuid4

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

import arpo
from arpo.agent.admission import Admission, RefusedError
from arpo.agent.deployed import ChatSession, DeployedAgent
from arpo.agent.figures import ServerFigures
from arpo.agent.pick import AgentAnswer
from arpo.errors import ArpoError
from arpo.rollout.watching import ResultsRead, TurnWritten

MOST_CONVERSATIONS = 1024  # kept; the one that was longest silent goes first


class McpAnswer(BaseModel):
    """What `ask` returns. `conversation` names the conversation, to go on with it."""

    answer: str
    ending: str
    conversation: str


def mcp_server(agent: DeployedAgent, admission: Admission, figures: ServerFigures, *, timeout_s: float) -> MCPServer:
    """The MCP server of `agent`; `admission` holds its requests, and others', within their limits."""
    tools = ", ".join(tool.name for tool in agent.components.agent.tools) or "none"
    about = f"Ask the agent {agent.run.name} a question. It works with its own tools ({tools}) and answers."
    # A client's mistake is told to the client; the SDK would also log it, with a traceback and the client's words.
    server = MCPServer(agent.run.name, instructions=about, version=arpo.__version__, log_level="CRITICAL")
    conversations: OrderedDict[str, ChatSession] = OrderedDict()

    async def answered(session: ChatSession, question: str, samples: int, context: Context) -> AgentAnswer:
        number = 0
        async with admission.place(), aclosing(session.stream(question, samples=samples)) as events:
            async for event in events:
                if isinstance(event, AgentAnswer):
                    return event
                if isinstance(event, ResultsRead):
                    figures.count_calls(event)
                if isinstance(event, TurnWritten | ResultsRead):
                    number += 1
                    text = event.turn.text if isinstance(event, TurnWritten) else event.text
                    await context.report_progress(number, message=text.strip()[:500])
        raise AssertionError("a stream ends with an answer or raises")

    @server.tool(
        description=f"{about} `conversation`: the name that an earlier answer gave, to go on with it; empty: a new "
        "one. `samples`: branches that try to answer, of which the most frequent answer counts."
    )
    async def ask(question: str, context: Context, conversation: str = "", samples: int = 1) -> McpAnswer:
        if conversation and conversation not in conversations:
            raise ToolError(f"there is no conversation {conversation!r:.60}: leave it empty to begin one")
        if not 1 <= samples <= 256:
            raise ToolError(f"samples should be from 1 to 256 (got {samples})")
        name = conversation or uuid4().hex
        session = conversations[name] if conversation else agent.session()
        outcome = "failed"
        try:
            async with asyncio.timeout(timeout_s):
                answer = await answered(session, question, samples, context)
            outcome = "failed" if answer.ending.aborted else "ok"
        except TimeoutError:
            outcome = "timeout"
            raise ToolError(f"no answer within {timeout_s:g} s") from None
        except RefusedError as error:
            outcome = "refused"
            raise ToolError(f"{error}. Try again in {error.retry_after_s} s") from None
        except ArpoError as error:
            raise ToolError(str(error)) from None
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            figures.requests.labels("mcp", outcome).inc()
        if answer.ending.aborted:
            raise ToolError(f"{answer.ending.replace('_', ' ')}: {answer.why}")
        conversations[name] = session  # one that nobody was told of is not kept, and lets none of others go
        conversations.move_to_end(name)
        while len(conversations) > MOST_CONVERSATIONS:
            conversations.popitem(last=False)
        return McpAnswer(answer=answer.text, ending=answer.ending.value, conversation=name)

    return server
