"""`arpo serve`: an agent over HTTP or MCP. `arpo gateway`: agents of others, trained over HTTP."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from arpo.cli import INTERRUPTED
from arpo.cli.boundary import command
from arpo.cli.options import Out, Overrides, Recipe
from arpo.errors import ConfigError, install
from arpo.terminal_safe import print_line

if TYPE_CHECKING:
    from arpo.agent.deployed import DeployedAgent
    from arpo.agent.server import ServeLimits


@command
def serve(
    source: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, a model, or a recipe.", show_default=False)
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Whose tools and prompt it gets. Runs, exported models and recipes have their own."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for other machines, which needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable with the key that clients send.")
    ] = "",
    running: Annotated[int, typer.Option(min=1, help="Requests that are answered at a time.")] = 64,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused with 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for an answer, its wait included.")] = 600.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for running answers when the server ends.")] = 60.0,
    mcp: Annotated[bool, typer.Option("--mcp", help="MCP on stdin and stdout instead (HTTP has it at /mcp).")] = False,
) -> None:
    """Serve an agent to OpenAI clients, or over MCP.

    Chat completions: answers with the agent's own tools, or single turns with the client's. /health, /metrics.
    """
    from arpo.agent.deployed import DeployedAgent
    from arpo.agent.listening import GracefulServer, listen
    from arpo.agent.server import AgentServer, ServeLimits

    limits = ServeLimits(key_env=key_env, running=running, waiting=waiting, timeout_s=timeout, drain_s=drain)
    if mcp:
        _serve_stdio(DeployedAgent.load(source, recipe=recipe, overrides=overrides or []), limits)
        return
    with listen(host, port, has_key=bool(limits.key)) as listening:  # a mistake here is told before a model is loaded
        agent = DeployedAgent.load(source, recipe=recipe, overrides=overrides or [])
        server = AgentServer(agent, limits)
        for note in agent.notes:
            print_line(note)
        address = f"http://{host}:{listening.getsockname()[1]}"
        print_line(f"model: {agent.label}\nserving {server.name} at {address}/v1\nCtrl-C ends.")
        GracefulServer(server.app, server.admission, drain, server.start).run(sockets=[listening])


@command
def gateway(
    recipe: Recipe,
    overrides: Overrides = None,
    agent: Annotated[
        str | None,
        typer.Option("--command", help="Starts an agent for each trajectory (else agents ask for tasks themselves)."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; other machines need --key-env.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Where to listen (else 8001).")] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="The environment variable with the key that agents send.")
    ] = None,
    deadline: Annotated[float | None, typer.Option(min=0.1, help="Seconds that an agent may be silent.")] = None,
    out: Out = None,
) -> None:
    """Train agents of others, which ask this run for their turns.

    Any program that asks an OpenAI-compatible endpoint, unchanged: its base_url leads here. docs/environments.md
    """
    from arpo.cli.run_arguments import run_behind_gateway
    from arpo.training.pipeline import train

    given = {"command": agent, "host": host, "port": port, "key_env": key_env, "deadline_s": deadline}
    options = {name: value for name, value in given.items() if value is not None}
    train(run_behind_gateway(recipe, overrides or [], options), out=out)


def _serve_stdio(agent: "DeployedAgent", limits: "ServeLimits") -> None:
    """Until the client closes stdin. Stdout is the protocol's: what people read goes to stderr."""
    from arpo.agent.listening import ended_by_signals
    from arpo.agent.server import AgentServer

    if (mcp := AgentServer(agent, limits).mcp) is None:
        raise ConfigError("needs the package mcp", where="--mcp", hint=install("mcp"))
    for note in (*agent.notes, f"model: {agent.label}"):
        print_line(note, sys.stderr)

    async def until_closed() -> None:
        serving = asyncio.ensure_future(mcp.run_stdio_async())
        try:
            with ended_by_signals():
                await asyncio.wait({serving})
        except KeyboardInterrupt:  # a thread waits for stdin, and keeps the process until the client closes that
            await agent.close()
            print_line("\nstopped", sys.stderr)
            os._exit(INTERRUPTED)
        await agent.close()
        serving.result()

    asyncio.run(until_closed())
