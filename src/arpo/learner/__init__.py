"""The learner: the policy's weights, their optimizer, and every tensor of an update. Imports `core` and foundations
alone.

The training loop, the cold start and the run's checkpoints see the protocol below and nothing behind it, so a learner
of several processes can take the place of `arpo.learner.local:LocalLearner`.

Names of tensors end in a suffix with one letter per dimension:

    _T   tokens of a pack, every tree's tokens once, in preorder
    _P   tokens of a pack that the policy wrote, in the pack's order
    _B   rows: one a trajectory (root to leaf)
    _L   places of a row: the policy's tokens of its trajectory, padded to the longest
    _N   the policy's tokens of all rows, padding left out
    _H   the model's hidden size; in attention.py, query heads
    _V   the vocabulary
    _S   segments of a pack: the prompts, turns and observations of its trees

attention.py adds _G (key heads), _R (query heads of one key head), _Q (queries), _K (keys) and _D (size of a head),
logprobs.py _C (positions of a chunk). A value without a suffix is a scalar.
"""

from __future__ import annotations  # `array[float]` cannot be subscripted before Python 3.12

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from arpo.core.credit import CreditedTree
    from arpo.core.place import Place

MAX_SKIPPED = 3
"""Updates in a row whose loss or gradient is not finite: training stops there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What `Learner.update` did. Both mappings are empty where no tree can teach anything."""

    metrics: Mapping[str, float]
    """`loss`, `lr`, `grad_norm`, `updates`, `skipped_updates`, `tokens_trained`, `tokens_flat` and those of the loss
    (`arpo.learner.losses:metrics`)."""
    logprobs: Mapping[str, Mapping[Place, array[float]]]
    """By task id and turn, the log-probability of each computed token (nats, float32) under the weights before the
    update."""


class Learner(Protocol):
    """Trains a policy."""

    updates: int
    """Optimizer steps so far as planned, skipped and missing ones included: the learning rate's schedule depends on
    it."""

    def update(self, trees: Sequence[CreditedTree], updates: int = 1, *, seed: int | None = None) -> Update:
        """Take `updates` optimizer steps on disjoint mini-batches of whole trees. `seed`: of what dropout draws."""
        ...

    def sft_step(self, trees: Sequence[CreditedTree], stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Take one optimizer step on the mean negative log-probability of the trees' turns. Returns its metrics; none
        where `stop`, which is called at every layer, returned True: then no weight changed."""
        ...

    def time_pass(self, trees: Sequence[CreditedTree]) -> float:
        """Seconds of a forward and a backward pass over `trees`. Changes nothing."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """All weights under the names of the transformers model, LoRA merged: what an engine takes (`Weights.state`).

        An engine in this process may share these tensors until the next update changes them."""
        ...

    def healthy(self) -> str | None:
        """None where all trained weights are finite, else the name of one that is not."""
        ...

    def snapshot(self) -> Callable[[Path], None]:
        """Copy the weights and the optimizer's state. What this returns writes the copy, once, while updates may go on:
        the weights to `folder/model`, a Hugging Face folder, the optimizer's state beside it. It raises CheckpointError
        where the disk does not take it. The next snapshot waits until that is done."""
        ...

    def load(self, folder: Path) -> None:
        """Take up the optimizer's state and the number of updates that a snapshot wrote; the weights are those of the
        model that the learner was built on. Raises CheckpointError where the state belongs to another model."""
        ...
