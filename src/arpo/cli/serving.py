"""`arpo serve`: an agent over HTTP or MCP."""

from typing import Annotated

import typer

from arpo.cli.boundary import command
from arpo.cli.options import Overrides
from arpo.terminal_safe import print_line


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
    mcp: Annotated[bool, typer.Option("--mcp", help="An MCP server: on stdin and stdout, or at --port.")] = False,
) -> None:
    """Serve an agent to OpenAI clients, or over MCP.

    Chat completions: answers with the agent's own tools, or single turns with the client's. /health, /metrics.
    """
    from arpo.agent.deployed import DeployedAgent
    from arpo.agent.listening import GracefulServer, listen
    from arpo.agent.server import AgentServer, ServeLimits

    limits = ServeLimits(key_env=key_env, running=running, waiting=waiting, timeout_s=timeout, drain_s=drain)
    listening = listen(host, port, has_key=bool(limits.key))  # a mistake here is told before a model is loaded
    with listening:
        agent = DeployedAgent.load(source, recipe=recipe, overrides=overrides or [])
        server = AgentServer(agent, limits)
        for note in agent.notes:
            print_line(note)
        address = f"http://{host}:{listening.getsockname()[1]}"
        print_line(f"model: {agent.label}\nserving {server.name} at {address}/v1\nCtrl-C ends.")
        GracefulServer(server.app, server.admission, drain).run(sockets=[listening])
