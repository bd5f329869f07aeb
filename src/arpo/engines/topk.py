"""Entropy intervals of many tokens at once, from their top-K log-probabilities.

The fast twin of `arpo.core.entropy:bounds_from_top_k`, which says what the bounds are and why.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def intervals(logprobs_NK: NDArray[np.floating], vocab_size: int) -> tuple[Floats, Floats]:
    """Lowest and highest entropy, nats, [N] each, of distributions over `vocab_size` tokens with these K highest
    log-probabilities (docs/method.md, section 3). A token that cannot come is -inf. K >= 1."""
    values = np.asarray(logprobs_NK, dtype=np.float64)
    num_known = values.shape[1]
    probabilities = np.exp(values)
    finite = np.where(probabilities > 0, values, 0.0)
    known = np.maximum(0.0, -(probabilities * finite).sum(1))
    tail = 1.0 - probabilities.sum(1)
    least = values.min(1)
    open_ended = (tail > 0) & (least > -np.inf) & (vocab_size > num_known)
    tail = np.where(open_ended, tail, 1.0)
    high = tail * np.log((vocab_size - num_known) / tail) if vocab_size > num_known else np.zeros_like(tail)
    low = np.minimum(tail * -np.where(open_ended, least, 0.0), high)
    return tuple(known + np.where(open_ended, np.maximum(0.0, extra), 0.0) for extra in (low, high))  # type: ignore[return-value]
