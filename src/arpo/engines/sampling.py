"""From logits to tokens: entropy, log-probability and the token that a request's own random number picks.

One uniform number a token, by a counter-based hash of (seed, index), through the inverse of the cumulative
distribution: the token depends on seed, index and distribution alone, never on the neighbours in the batch. Knows no
requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_PIECE = 1 << 19  # logits that a CPU treats at once: what stays in its cache, and below what malloc maps anew each time
_BLOCK = 256  # the cumulative sum runs over blocks first, then inside one block: 1/256 of the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """How one row is sampled. `index` counts the tokens of its turn."""

    temperature: float
    top_p: float
    seed: int
    index: int


@dataclass(frozen=True, slots=True)
class Picked:
    """One entry a row: token, ln p at the sampling temperature (temperature 0: at 1), entropy in nats at temperature
    1."""

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]


def uniform(seed: int, index: int) -> float:
    """A number in (0, 1) that depends on its arguments alone (two rounds of SplitMix64, Steele et al. 2014)."""
    return (_mix(_mix(seed & _MASK) ^ (index * 0x9E3779B97F4A7C15 & _MASK)) >> 11) * 2.0**-53 + 2.0**-54


def _mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def sample(logits: Tensor, picks: Sequence[Pick]) -> Picked:
    """logits [R, V] of any float type, one Pick a row. The log-probability is of the whole distribution, also with
    top-p < 1.

    Raises FloatingPointError where a row is not finite.
    """
    if logits.device.type != "cpu":
        return _sample_piece(logits, picks)
    most = max(1, _PIECE // logits.shape[1])
    pieces = [_sample_piece(logits[i : i + most], picks[i : i + most]) for i in range(0, len(logits), most)]
    return Picked(
        [token for piece in pieces for token in piece.tokens],
        [logprob for piece in pieces for logprob in piece.logprobs],
        [entropy for piece in pieces for entropy in piece.entropies],
    )


def _sample_piece(logits: Tensor, picks: Sequence[Pick]) -> Picked:
    rows = logits.float()
    count = len(rows)
    top = rows.amax(-1, keepdim=True)
    below = (rows - top).clamp_(
        min=-1e30
    )  # a forbidden token (-inf) has no mass: 0 * -1e30 is 0, where 0 * -inf is not
    mass = below.softmax(-1)  # faster than exp and sum; the likeliest token's share is one over the sum
    total = mass.amax(-1).reciprocal_()
    entropies = total.log() - torch.linalg.vecdot(mass, below)
    temperatures = torch.tensor([p.temperature or 1.0 for p in picks], device=rows.device)
    if any(p.temperature not in (0.0, 1.0) for p in picks):
        heated = (below / temperatures[:, None]).softmax(-1)
        total = heated.amax(-1).reciprocal_()
    else:
        heated = mass
    kept = heated
    narrow = [i for i, p in enumerate(picks) if p.top_p < 1.0 and p.temperature]
    if narrow:
        kept = heated.clone() if len(narrow) < count else heated
        kept[narrow] = _nucleus(heated[narrow], torch.tensor([picks[i].top_p for i in narrow], device=rows.device))
    draws = torch.tensor([uniform(p.seed, p.index) for p in picks], dtype=torch.float64)
    tokens = _invert(kept, draws.to(rows.device))
    greedy = torch.tensor([p.temperature == 0.0 for p in picks])
    if greedy.any():
        tokens = torch.where(greedy.to(rows.device), rows.argmax(-1), tokens)
    logprobs = below.gather(1, tokens[:, None])[:, 0] / temperatures - total.log()
    table = torch.stack((tokens.double(), logprobs.double(), entropies.double())).tolist()
    if not all(map(_finite, table[1])):
        raise FloatingPointError("the model's logits are not finite")
    return Picked([int(t) for t in table[0]], table[1], [max(h, 0.0) for h in table[2]])


def _finite(number: float) -> bool:
    return number - number == 0.0


def _invert(mass: Tensor, draws: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds draw * total: mass [R, V] >= 0, draws [R] in (0, 1) -> [R]."""
    count, vocabulary = mass.shape
    whole = vocabulary // _BLOCK * _BLOCK
    sums = mass[:, :whole].reshape(count, -1, _BLOCK).sum(-1)
    if whole < vocabulary:
        sums = torch.cat((sums, mass[:, whole:].sum(-1, keepdim=True)), 1)
    ends = sums.double().cumsum(-1)
    goal = draws * ends[:, -1]
    block = torch.searchsorted(ends, goal[:, None], right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), torch.zeros_like(goal[:, None]))
    index = block * _BLOCK + torch.arange(_BLOCK, device=mass.device)
    inside = mass.gather(1, index.clamp(max=vocabulary - 1)) * (index < vocabulary)
    runs = inside.double().cumsum(-1)
    offset = torch.searchsorted(runs, goal[:, None] - before, right=True)
    # Rounding can leave the goal a hair above the block's own sum: then the last token with mass is meant.
    last = (inside > 0).long().mul_(torch.arange(1, _BLOCK + 1, device=mass.device)).amax(-1, keepdim=True) - 1
    return (block * _BLOCK + torch.minimum(offset, last.clamp(min=0)))[:, 0]


def _nucleus(mass: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the smallest set of likeliest tokens that holds `top_p` of the mass. mass [R, V], top_p [R]."""
    ordered, order = mass.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p[:, None].double() * ordered.double().sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(mass).scatter_(1, order, ordered)
