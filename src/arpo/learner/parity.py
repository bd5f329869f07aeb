"""Whether a model computes under the learner what it computes by itself: asked once, of a few tokens, before anything is sampled.

Architectures scale their logits, place their tokens and call their attention in ways that no list foresees. Knows two ways to
compute one thing. Refuses to know why they differ.
"""

from array import array
from typing import Any

import torch
from torch import Tensor

from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.place import Place
from arpo.core.score import Score
from arpo.core.tree import Observation, Prompt, Role, RolloutTree, StopReason, Turn
from arpo.errors import ConfigError, first_line
from arpo.learner.attention import tree_attention
from arpo.learner.local import Packing, Policy, trains_by_tree
from arpo.learner.packing import pack

MOST = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats between two ways to compute a token's log-probability, in the median: rounding is far below, another function far above."""
MOST_ROUGH = 0.25  # of weights in half precision, where rounding may also send a token to another expert


def choose_packing(model: Any, packing: Packing) -> tuple[bool, str | None]:
    """Whether to train `model` tree-packed, and why not where that was left open.

    Raises ConfigError where the learner cannot compute its log-probabilities, or packing is `tree` and it can only do so flat.
    """
    policy = Policy(model, tree=False)
    tree, reason = trains_by_tree(policy.plain.config, packing)
    if wrong := _disagreement(policy, tree=False):
        raise ConfigError(f"{type(policy.plain).__name__} cannot be trained: {wrong}", where="model.source")
    if tree and (wrong := _disagreement(policy, tree=True)):
        if packing == "tree":
            what = f"this model cannot be trained tree-packed: {wrong}"
            raise ConfigError(what, where="train.packing", value=packing, hint="use flat or auto")
        return False, wrong
    return tree, reason


def _disagreement(policy: Policy, *, tree: bool) -> str | None:
    """Why the learner's log-probabilities are not the model's own; None where they are, or the model has none that are numbers."""
    model = policy.plain
    training = model.training
    asked = _small_tree(model.get_output_embeddings())
    model.eval()
    try:
        with torch.no_grad():
            found = _by_tree(policy, asked) if tree else _flat(policy, asked)
            gap = (found - _own(model, asked)).abs().median().item()
    except (torch.OutOfMemoryError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001  the model's own code, met for the first time in this way
        return f"{'packed, ' if tree else ''}it fails ({type(error).__name__}: {first_line(error)})"
    finally:
        model.train(training)
    if gap > MOST.get(next(model.parameters()).dtype, MOST_ROUGH):
        return f"{'packed, ' if tree else ''}its log-probabilities would be wrong by {gap:.2g} nats a token"
    return None


def _small_tree(head: Any) -> CreditedTree:
    """Two branches that part early; tokens from all over the vocabulary."""
    size = len(head.weight) if isinstance(head, torch.nn.Linear) else 2
    tokens = iter([(31 * number + 7) % size for number in range(40)])

    def some(count: int) -> "array[int]":
        return array("i", [next(tokens) for _ in range(count)])

    def turn(place: Place, role: Role, count: int) -> Turn:
        zeros = array("f", [0.0] * count)
        return Turn(place=place, role=role, tokens=some(count), logprobs=zeros, entropies=zeros)

    tree = RolloutTree("agreement", 0, Prompt(tokens=some(3)))
    tree.grow(turn((0,), Role.ROOT, 2))
    tree.grow(Observation(place=(0,), tokens=some(2), outcomes=()))
    leaves: tuple[Place, ...] = ((0, 0), (0, 1))
    for leaf, role in zip(leaves, (Role.PROBE, Role.SIBLING), strict=True):
        tree.grow(turn(leaf, role, 7))
        tree.end(leaf, StopReason.FINISHED)
    credit = {(leaf[:depth], leaf): 1.0 for leaf in leaves for depth in (1, 2)}
    return CreditedTree(
        ScoredTree(tree, {leaf: Score(reward=1.0, accuracy=1.0) for leaf in leaves}), dict.fromkeys(leaves, 1.0), credit
    )


def _by_tree(policy: Policy, asked: CreditedTree) -> Tensor:
    """[rows * tokens]. By the dense mask: what it shares with the kernels is all that the model has a say in."""
    [batch] = [one.to(policy.plain.device) for one in pack([asked], 1000)]
    packed = Policy(policy.model, tree=True)
    with tree_attention(policy.plain, "arpo_tree_dense"):
        return batch.rows(packed(batch)[0]).flatten()


def _flat(policy: Policy, asked: CreditedTree) -> Tensor:
    batches = [one.to(policy.plain.device) for one in pack([asked], 1000, flat=True)]
    return torch.cat([batch.rows(policy(batch)[0]).flatten() for batch in batches])


def _own(model: Any, asked: CreditedTree) -> Tensor:
    """The same by the model's own forward over each branch."""
    rows = []
    for branch in asked.tree.branches():
        tokens_T = torch.tensor(branch.tokens.tolist(), device=model.device)
        logprob_TV = model(input_ids=tokens_T[None], use_cache=False).logits[0].float().log_softmax(-1)
        at = 0
        places: list[int] = []
        for segment in branch.segments:
            places += range(at, at + len(segment.tokens)) if isinstance(segment, Turn) else ()
            at += len(segment.tokens)
        rows.append(torch.stack([logprob_TV[place - 1, tokens_T[place]] for place in places]))
    return torch.cat(rows)
