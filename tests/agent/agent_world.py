"""A deployed agent of scripted turns, for the tests of this folder."""

from typing import Any

from arpo.agent.deployed import DeployedAgent
from arpo.assembly.components import EvalComponents
from arpo.engines.scripted import Play
from arpo.recipe.run import RunConfig
from small_world import SIZES, agent, right


def deployed(
    tokenizer: Any, play: Play, *tools: Any, run: dict[str, Any] | None = None, **values: Any
) -> DeployedAgent:
    """`values`: of `small_world.agent`; `run`: other parts of the recipe."""
    recipe = {"data": {"train": {"source": "atlas"}}, "rollout": {}, **(run or {})}
    recipe["rollout"] = {"leaves": 4, "roots": 2, "rule": "paper", **SIZES, **recipe["rollout"]}
    return DeployedAgent(
        EvalComponents(run=RunConfig(**recipe), agent=agent(tokenizer, play, *tools, **values), reward=right)
    )
