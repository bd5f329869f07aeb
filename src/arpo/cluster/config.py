"""What a recipe says about a Ray cluster. Imports nothing heavy."""

from typing import Annotated

from pydantic import Field

from arpo.config import Config


class ClusterConfig(Config):
    """A Ray cluster, on which the learner's ranks and vLLM's servers are placed (the extra `cluster`)."""

    ranks: Annotated[int, Field(ge=1)] | None = None
    """Processes that share the model that is trained, each an actor with a GPU of its own (with `model.device: cpu`, or
    where the cluster has no GPU, with a CPU). Null: no Ray."""
    address: Annotated[str, Field(min_length=1)] | None = None
    """The cluster's `HOST:PORT`, or `auto` for the one that this machine belongs to. Null: what RAY_ADDRESS says, else
    a Ray on this machine alone that ends with the run."""
