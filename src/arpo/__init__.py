"""Train tool-using language agents with reinforcement learning: trees of rollouts that branch where the policy turns unsure (ARPO).

    import arpo

    run = arpo.Run(data={"train": {"source": "tasks.jsonl"}}, tools=[lookup], reward=scored)
    arpo.train(run)

Importing this is instant: what is named here is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arpo.chat import Transcript
    from arpo.core.score import Score
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
    from arpo.recipe import load_recipe
    from arpo.run import Run
    from arpo.tasks import Task
    from arpo.tools import CallContext, ToolResult
    from arpo.tools.function import tool
    from arpo.train.callbacks import Callback
    from arpo.train.pipeline import train

__version__ = "0.1.0"

_HOMES = {
    "Run": ("arpo.run", "Run"),
    "Callback": ("arpo.train.callbacks", "Callback"),
    "load_recipe": ("arpo.recipe", "load_recipe"),
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
    "ArpoError",
    "CallContext",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "EngineError",
    "FormatError",
    "ProviderError",
    "RewardError",
    "Run",
    "Score",
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
    if name == "train":  # a package that can be called: see there
        return import_module("arpo.train")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'arpo' has no attribute {name!r}")
