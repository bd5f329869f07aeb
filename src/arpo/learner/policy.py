"""The policy: a causal language model as a function of packs, and whether a model can be one.

Architectures scale their logits, place their tokens and call their attention in ways that no list foresees. So before
anything is sampled, the parity check computes a few tokens' log-probabilities as the learner does and as the model
itself does. Knows transformers models and packs. Refuses to know losses and optimizers.
"""

import copy
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.place import Place
from arpo.core.score import Score
from arpo.core.tree import Observation, Prompt, Role, RolloutTree, StopReason, Turn
from arpo.errors import ConfigError, first_line
from arpo.learner.attention import layout_of, model_inputs, supports_tree, tree_attention
from arpo.learner.logprobs import CHUNK, LMHead, token_logprobs
from arpo.learner.packing import PackedBatch, pack

Packing = Literal["auto", "tree", "flat"]

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats, by the weights' type: the largest median difference between two ways to compute a token's log-probability.
Rounding lies far below it, another function far above."""
TOLERANCE_HALF = 0.25
"""The same for weights in half precision, where rounding may also send a token to another expert."""


class Policy(nn.Module):
    """A causal language model as a function of packs: log-probability [P] and entropy [P] of the policy's tokens, in
    nats."""

    def __init__(self, model: Any, *, tree: bool, temperature: float = 1.0, entropy_grad: bool = False) -> None:
        super().__init__()
        self.model, self.tree, self.temperature, self.entropy_grad = model, tree, temperature, entropy_grad
        self.chunk = CHUNK  # positions whose logits are in memory at once

    @property
    def base_model(self) -> Any:
        """The transformers model, without PEFT's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def attention(self) -> AbstractContextManager[None]:
        """A context in which forward and backward passes use tree attention; it changes nothing where training is
        flat."""
        return tree_attention(self.base_model) if self.tree else nullcontext()

    def pair_cost(self) -> float:
        """What a (query, key) pair costs in attention, in units of what a token costs in the layers' products:
        multiplications forward and backward, 12 x layers x hidden size over 6 x parameters of the layers."""
        layers = getattr(self.base_model.get_decoder(), "layers", ())
        parameters = sum(p.numel() for layer in layers for p in layer.parameters())
        hidden_size = self.base_model.config.get_text_config().hidden_size
        return 2.0 * len(layers) * hidden_size / parameters if parameters else 0.0

    def forward(self, batch: PackedBatch, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities at `temperature` (None: the recipe's), entropies at 1."""
        layout = layout_of(batch) if self.tree else None
        hidden_TH = self.base_model.get_decoder()(**model_inputs(batch, layout)).last_hidden_state[0]
        return token_logprobs(
            batch.predicting(hidden_TH),
            batch.targets_P,
            LMHead.from_model(self.base_model),
            temperature=temperature or self.temperature,
            entropy_grad=self.entropy_grad,
            chunk=self.chunk,
        )


def choose_packing(model: Any, packing: Packing) -> tuple[bool, str | None]:
    """Whether to train `model` on tree packs, and, where `packing` is `auto` and the answer is no, the reason.

    Raises ConfigError where the learner cannot compute the model's log-probabilities, or cannot on tree packs and
    `packing` is `tree`.
    """
    policy = Policy(_with_weights(model), tree=False)
    reason = supports_tree(policy.base_model.config)
    if packing == "tree" and reason:
        raise _refuses_trees(reason)
    if wrong := _disparity(policy, tree=False):
        raise ConfigError(f"{type(policy.base_model).__name__} cannot be trained: {wrong}", where="model.source")
    if packing == "flat":
        return False, None
    reason = reason or _disparity(policy, tree=True)
    if packing == "tree" and reason:
        raise _refuses_trees(reason)
    return reason is None, reason


def _with_weights(model: Any) -> Any:
    """`model`, or where its weights are with the learner's ranks a small one of its architecture: on zeros every way of
    computing gives the same."""
    weight = next(model.parameters())
    if weight.numel() == 1 or any(weight.stride()):
        return model
    base = Policy(model, tree=False).base_model
    config = copy.deepcopy(base.config)
    text = config.get_text_config()
    text.vocab_size, text.num_hidden_layers = min(text.vocab_size, 1024), min(text.num_hidden_layers, 2)
    text.pad_token_id = None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return type(base)._from_config(config, dtype=torch.float32).train()


def _refuses_trees(reason: str) -> ConfigError:
    what = f"this model cannot be trained tree-packed: {reason}"
    return ConfigError(what, where="train.packing", value="tree", hint="use flat or auto")


def _disparity(policy: Policy, *, tree: bool) -> str | None:
    """How the learner's log-probabilities differ from the model's; None where they agree or the model's are NaN."""
    model = policy.base_model
    training = model.training
    example = _small_tree(model.get_output_embeddings())
    model.eval()
    try:
        with torch.no_grad():
            logprobs = _by_tree(policy, example) if tree else _flat(policy, example)
            gap = (logprobs - _by_model(model, example)).abs().median().item()
    except (torch.OutOfMemoryError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001  the model's own code, called in this way for the first time
        return f"{'packed, ' if tree else ''}it fails ({type(error).__name__}: {first_line(error)})"
    finally:
        model.train(training)
    if gap > TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE_HALF):
        return f"{'packed, ' if tree else ''}its log-probabilities would be wrong by {gap:.2g} nats a token"
    return None


def _small_tree(head: Any) -> CreditedTree:
    """Two branches that fork early, with tokens from all over the vocabulary."""
    size = len(head.weight) if isinstance(head, torch.nn.Linear) else 2
    tokens = iter([(31 * number + 7) % size for number in range(40)])

    def take(count: int) -> "array[int]":
        return array("i", [next(tokens) for _ in range(count)])

    def turn(place: Place, role: Role, count: int) -> Turn:
        zeros = array("f", [0.0] * count)
        return Turn(place=place, role=role, tokens=take(count), logprobs=zeros, entropies=zeros)

    tree = RolloutTree("parity", 0, Prompt(tokens=take(3)))
    tree.grow(turn((0,), Role.ROOT, 2))
    tree.grow(Observation(place=(0,), tokens=take(2), outcomes=()))
    leaves: tuple[Place, ...] = ((0, 0), (0, 1))
    for leaf, role in zip(leaves, (Role.PROBE, Role.SIBLING), strict=True):
        tree.grow(turn(leaf, role, 7))
        tree.end(leaf, StopReason.FINISHED)
    credit = {(leaf[:depth], leaf): 1.0 for leaf in leaves for depth in (1, 2)}
    return CreditedTree(
        ScoredTree(tree, {leaf: Score(reward=1.0, accuracy=1.0) for leaf in leaves}), dict.fromkeys(leaves, 1.0), credit
    )


def _by_tree(policy: Policy, example: CreditedTree) -> Tensor:
    """[rows * tokens] on a tree pack. The dense mask is enough: the kernels agree with it whatever the model."""
    [batch] = pack([example], 1000)
    batch = batch.to(policy.base_model.device)
    packed = Policy(policy.model, tree=True)
    with tree_attention(policy.base_model, "arpo_tree_dense"):
        return batch.rows(packed(batch)[0]).flatten()


def _flat(policy: Policy, example: CreditedTree) -> Tensor:
    """[rows * tokens], each trajectory alone in a pack."""
    batches = [batch.to(policy.base_model.device) for batch in pack([example], 1000, flat=True)]
    return torch.cat([batch.rows(policy(batch)[0]).flatten() for batch in batches])


def _by_model(model: Any, example: CreditedTree) -> Tensor:
    """[rows * tokens], by the model's forward pass over each branch."""
    rows = []
    for branch in example.tree.branches():
        tokens_T = torch.tensor(branch.tokens.tolist(), device=model.device)
        logprob_TV = model(input_ids=tokens_T[None], use_cache=False).logits[0].float().log_softmax(-1)
        at = 0
        places: list[int] = []
        for segment in branch.segments:
            places += range(at, at + len(segment.tokens)) if isinstance(segment, Turn) else ()
            at += len(segment.tokens)
        rows.append(torch.stack([logprob_TV[place - 1, tokens_T[place]] for place in places]))
    return torch.cat(rows)


class Stopped(Exception):
    """The pass was stopped; gradients hold a part of it."""


@contextmanager
def stoppable(decoder: Any, stop: Callable[[], bool]) -> Iterator[None]:
    """Forward and backward passes of `decoder` inside raise Stopped at the next layer once `stop` returns True: on a
    slow machine a pass takes minutes, and Ctrl-C must not. Without hooks torch runs the backward pass outside of
    Python, where no signal is heard."""

    def check(*_: object) -> None:
        if stop():
            raise Stopped

    def check_backward(_module: object, _inputs: object, output: Any) -> None:
        check()
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(check)

    hooks = [layer.register_forward_hook(check_backward) for layer in getattr(decoder, "layers", ())]
    try:
        check()
        yield
    finally:
        for hook in hooks:
            hook.remove()
