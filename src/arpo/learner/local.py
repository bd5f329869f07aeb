"""The learner of one process and one device: the driver and its only rank, which holds the whole policy."""

from collections.abc import Sequence
from typing import Any

import torch

from arpo.core.credit import CreditedTree
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.driver import LearnerDriver
from arpo.learner.logprobs import CHUNK
from arpo.learner.packing import PackedBatch
from arpo.learner.policy import Policy
from arpo.learner.rank import ModelSource, Rank, RankSettings
from arpo.learner.ranks import OneRank


class LocalLearner(LearnerDriver):
    """Trains `model` in place. `num_updates` is the length of the learning rate's schedule; see `arpo.learner.Learner`.

    `reference`: the model that the loss keeps the policy close to; None: the model as it is now. Ignored, and no copy
    kept, where `loss` has no divergence.
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: LossConfig,
        optim: OptimConfig,
        num_updates: int,
        token_budget: int,
        tree: bool,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
        head_chunk: int = CHUNK,
        reference: Any = None,
    ) -> None:
        settings = RankSettings(
            loss=loss, optim=optim, tree=tree, temperature=temperature, dtype=dtype, head_chunk=head_chunk
        )
        self.rank = Rank()
        self.rank.policy = Policy(model, tree=tree)
        self.rank.start(settings, None if reference is None else ModelSource(lambda: reference))
        super().__init__(OneRank(self.rank), settings, num_updates=num_updates, token_budget=token_budget)

    def packs(self, trees: Sequence[CreditedTree]) -> list[PackedBatch]:
        """`trees` as packs of at most `token_budget` tokens, on the model's device."""
        return [p.to(self.rank.device) for p in self.deal(trees)[0]]

    @property
    def policy(self) -> Policy:
        return self.rank.policy

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.rank.optimizer
