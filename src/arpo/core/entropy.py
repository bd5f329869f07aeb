"""Entropy of the next-token distribution, in nats (docs/method.md, section 3).

Knows probabilities, logits and stored entropies. Refuses to know where they come from and what depends on them.
"""

import math
from collections.abc import Sequence


def entropy_of_probabilities(probabilities_V: Sequence[float]) -> float:
    """`-sum p ln p`, in nats. Raises ValueError if a probability is negative or they do not sum to 1 (within 1e-4)."""
    if not probabilities_V or min(probabilities_V) < 0 or abs(math.fsum(probabilities_V) - 1) > 1e-4:
        raise ValueError("probabilities must be at least 0 and sum to 1")
    return math.fsum(-p * math.log(p) for p in probabilities_V if p > 0)


def entropy_of_logits(logits_V: Sequence[float]) -> float:
    """Entropy of `softmax(logits)`, in nats. Log-probabilities are logits too; `-inf` means an impossible token.

    Raises ValueError if no logit is finite, or if one is NaN or `inf`.
    """
    top = max(logits_V, default=-math.inf)
    if not math.isfinite(top) or any(math.isnan(x) for x in logits_V):
        raise ValueError("logits must be numbers or -inf, and one of them finite")
    shifted = [x - top for x in logits_V if x > -math.inf]
    weights = [math.exp(x) for x in shifted]
    total = math.fsum(weights)
    return max(0.0, math.log(total) - math.fsum(w * x for w, x in zip(weights, shifted, strict=True)) / total)


def bounds_from_top_k(logprobs_K: Sequence[float], vocab_size: int) -> tuple[float, float]:
    """Bounds (low, high), in nats, on the entropy of a distribution over `vocab_size` tokens with these K highest
    log-probabilities.

    With tail mass `r = 1 - sum p`, the tail adds at most `r ln((V - K) / r)` (if it is uniform) and at least
    `r ln(1 / p_K)` (if it is concentrated in tokens as likely as the K-th). The estimate to store is the midpoint. The
    order of the values does not matter. Leave out a sampled token that is not among the K most likely: with it the
    lower bound does not hold. Raises ValueError for more than V values, or for a probability above 1.
    """
    K = len(logprobs_K)
    if not 0 < K <= vocab_size:
        raise ValueError(f"top-k log-probabilities: {K} values for a vocabulary of {vocab_size}")
    if not max(logprobs_K) <= 1e-4 or any(math.isnan(x) for x in logprobs_K):
        raise ValueError("log-probabilities must be numbers at most 0")
    probabilities = [math.exp(x) for x in logprobs_K]
    known = math.fsum(-p * x for p, x in zip(probabilities, logprobs_K, strict=True) if p > 0)
    known, smallest = max(0.0, known), min(logprobs_K)
    tail = 1.0 - math.fsum(probabilities)
    if tail <= 0 or vocab_size == K or smallest == -math.inf:
        return known, known
    high = tail * math.log((vocab_size - K) / tail)
    # rounding can leave a tail larger than V - K tokens as likely as the K-th can hold: both bounds are the uniform
    # tail
    low = min(tail * -smallest, high)
    return known + max(0.0, low), known + max(0.0, high)


def head_entropy(entropies: Sequence[float], head: int) -> float:
    """Mean of the first `head` values (of all if there are fewer), summed in token order in float64; 0.0 for an empty
    turn.

    A loop adds them up because `sum` rounds differently from Python 3.12 on, and replay must decide the same
    everywhere.
    """
    total, count = 0.0, min(head, len(entropies))
    for index in range(count):
        total += entropies[index]
    return total / count if count else 0.0
