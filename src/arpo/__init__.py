"""Train tool-using language agents with reinforcement learning: trees of rollouts that branch where the policy turns
unsure (ARPO).

    import arpo

    run = arpo.Run(data={"train": {"source": "tasks.jsonl"}}, tools=[lookup], reward=scored)
    arpo.train(run)

Importing this is instant: what is named here is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arpo.agent.deployed import DeployedAgent as Agent
    from arpo.chat import Transcript
    from arpo.core.score import Score
    from arpo.environments import AgentTurn, Environment, Step
    from arpo.errors import (
        ArpoError,
        CheckpointError,
        ConfigError,
        EngineError,
        FormatError,
        ProviderError,
        RewardError,
        ToolError,
        ToolsStoppedError,
    )
    from arpo.recipe.load import load_recipe
    from arpo.recipe.run import RunConfig as Run
    from arpo.tasks import Task
    from arpo.tools import CallContext, ToolResult
    from arpo.tools.function import tool
    from arpo.training.callbacks import Callback
    from arpo.training.pipeline import train

__version__ = "0.1.0"

_HOMES = {
    "Agent": ("arpo.agent.deployed", "DeployedAgent"),
    "Run": ("arpo.recipe.run", "RunConfig"),
    "train": ("arpo.training.pipeline", "train"),
    "Callback": ("arpo.training.callbacks", "Callback"),
    "load_recipe": ("arpo.recipe.load", "load_recipe"),
    "Environment": ("arpo.environments", "Environment"),
    "AgentTurn": ("arpo.environments", "AgentTurn"),
    "Step": ("arpo.environments", "Step"),
    "tool": ("arpo.tools.function", "tool"),
    "Task": ("arpo.tasks", "Task"),
    "Score": ("arpo.core.score", "Score"),
    "Transcript": ("arpo.chat", "Transcript"),
    "CallContext": ("arpo.tools", "CallContext"),
    "ToolResult": ("arpo.tools", "ToolResult"),
    **{
        name: ("arpo.errors", name)
        for name in (
            "ArpoError",
            "CheckpointError",
            "ConfigError",
            "EngineError",
            "FormatError",
            "ProviderError",
            "RewardError",
            "ToolError",
            "ToolsStoppedError",
        )
    },
}

__all__ = [
    "Agent",
    "AgentTurn",
    "ArpoError",
    "CallContext",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "EngineError",
    "Environment",
    "FormatError",
    "ProviderError",
    "RewardError",
    "Run",
    "Score",
    "Step",
    "Task",
    "ToolError",
    "ToolResult",
    "ToolsStoppedError",
    "Transcript",
    "load_recipe",
    "tool",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'arpo' has no attribute {name!r}")
