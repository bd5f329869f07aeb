"""Statistics of evaluations: rates and means with intervals, pass@k, and differences of two runs on the same questions.

Knows numbers grouped by question. Refuses to know models, files and what a question is. The unit that is resampled is
always the question: samples of one question are not independent.
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 2_000_000  # indices drawn at a time: bounds memory to about 32 MB whatever the number of questions
FEW = 5  # questions that are neither wholly wrong nor right, or that differ, below which their spread says little
_EXACT_FLIPS = 12  # up to this many differing questions, all 2^n sign flips are counted instead of sampled


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval over `n` units (questions, or seeds). Bounds are NaN where nothing can be said of
    them."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.3f}" if math.isnan(self.low) else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def percent(self) -> str:
        """`67.5 % [61.0, 74.0]`."""
        if math.isnan(self.mean):
            return "-"
        interval = "" if math.isnan(self.low) else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.mean:.1f} %{interval}"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Estimate":
        """From `{"mean", "low", "high", "n"}` as JSON holds it (null: NaN)."""
        mean, low, high = (math.nan if value[name] is None else float(value[name]) for name in ("mean", "low", "high"))
        return cls(mean, low, high, int(value["n"]))


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference b - a over the questions that both have, and the two-sided p-value of a sign-flip test."""

    difference: Estimate
    p_value: float

    def __str__(self) -> str:
        return (
            f"{self.difference.mean:+.3f} [{self.difference.low:+.3f}, {self.difference.high:+.3f}], "
            f"p = {self.p_value:.3g}"
        )


def keyed_generator(seed: int, purpose: str) -> np.random.Generator:
    """A generator that depends on its key alone, not on what was drawn before."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def pass_at_k(num_samples: npt.ArrayLike, num_correct: npt.ArrayLike, k: int) -> Floats:
    """Unbiased pass@k of each question: `1 - C(n - c, k) / C(n, k)` (arXiv 2107.03374, eq. 1).

    `num_samples` and `num_correct` hold n and c by question (they broadcast). Computed as a product, so large n do not
    overflow. Raises ValueError unless 1 <= k <= n and 0 <= c <= n everywhere.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples, dtype=np.int64), np.asarray(num_correct, dtype=np.int64))
    if k < 1 or (n < k).any():
        raise ValueError(
            f"pass@{k} needs at least {max(k, 1)} samples of every question (fewest here: {n.min(initial=k)})"
        )
    if (c < 0).any() or (c > n).any():
        raise ValueError("correct samples must lie between 0 and the number of samples")
    missed = np.ones(n.shape)
    for i in range(k):  # C(n - c, k) / C(n, k) = prod (n - c - i) / (n - i); a factor of 0 where fewer than k are wrong
        missed = missed * np.maximum(n - c - i, 0) / (n - i)
    return np.asarray(1.0 - missed)


def bootstrap(values: npt.ArrayLike, *, seed: int = 0, purpose: str = "mean", resamples: int = RESAMPLES) -> Estimate:
    """Mean of `values` (one a question) with the percentile-bootstrap interval over questions.

    One question, or none, has no interval (NaN bounds).
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) < 2:
        return Estimate(float(x[0]) if len(x) else math.nan, math.nan, math.nan, len(x))
    means = _resampled_means(x, keyed_generator(seed, f"{purpose}/{len(x)}"), resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(x.mean()), float(low), float(high), len(x))


def _resampled_means(x: Floats, random: np.random.Generator, resamples: int) -> Floats:
    return _in_rows(lambda rows: x[random.integers(0, len(x), (rows, len(x)))].mean(axis=1), len(x), resamples)


def _in_rows(draw: Callable[[int], Floats], width: int, resamples: int) -> Floats:
    """`draw(rows)` for `resamples` rows in all, as many at a time as memory is meant for."""
    rows = max(1, _CHUNK // width)
    return np.concatenate([draw(min(rows, resamples - start)) for start in range(0, resamples, rows)])


def ratio(
    above: npt.ArrayLike, below: npt.ArrayLike, *, seed: int = 0, purpose: str = "ratio", resamples: int = RESAMPLES
) -> Estimate:
    """`sum(above) / sum(below)`, both with one value a question, with the percentile-bootstrap interval over questions.

    NaN where `below` sums to 0; no interval where it does in too many resamples for one (a single question made calls),
    or where `above` sums to 0, of which resampling would know no doubt. Raises ValueError where the lengths differ.
    """
    pairs = np.stack([np.asarray(above, dtype=np.float64).ravel(), np.asarray(below, dtype=np.float64).ravel()], axis=1)
    if not len(pairs) or not (total := pairs.sum(axis=0))[1]:
        return Estimate(math.nan, math.nan, math.nan, len(pairs))
    if len(pairs) < 2:
        return Estimate(float(total[0] / total[1]), math.nan, math.nan, len(pairs))
    random = keyed_generator(seed, f"{purpose}/{len(pairs)}")
    sums = _in_rows(
        lambda rows: pairs[random.integers(0, len(pairs), (rows, len(pairs)))].sum(axis=1), len(pairs), resamples
    )
    mean, nonzero = float(total[0] / total[1]), sums[sums[:, 1] > 0]
    if not total[0] or len(nonzero) < (1 + LEVEL) / 2 * len(sums):
        return Estimate(mean, math.nan, math.nan, len(pairs))
    low, high = np.quantile(nonzero[:, 0] / nonzero[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), len(pairs))


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of independent estimates (benchmarks, each counting the same); `n` counts them.

    Its interval comes from theirs (MOVER: Zou and Donner, Statistics in Medicine 27, 2008), so that a benchmark without
    one right answer, of which a bootstrap would know nothing, widens it as it should. NaN bounds where one of them has
    none.
    """
    if not estimates:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean, count = math.fsum(e.mean for e in estimates) / len(estimates), len(estimates)
    below = math.hypot(*(e.mean - e.low for e in estimates)) / count
    above = math.hypot(*(e.high - e.mean for e in estimates)) / count
    return Estimate(mean, mean - below, mean + above, count)


def wilson(num_right: float, num_asked: int) -> Estimate:
    """A plain rate with Wilson's score interval: sensible also at 0 and 1, where a bootstrap has no width.

    `num_right` may be a sum of shares from 0 to 1: none varies more than right and wrong do, so the interval is wide
    enough."""
    if not 0 <= num_right <= num_asked:
        raise ValueError(f"{num_right} right of {num_asked} asked")
    if num_asked == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = _normal_quantile((1 + LEVEL) / 2)
    p, n = num_right / num_asked, num_asked
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (0.0 if num_right == 0 else centre - half), (1.0 if num_right == n else centre + half)
    return Estimate(p, max(low, 0.0), min(high, 1.0), n)


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def rate(by_question: Mapping[str, Sequence[float]], *, seed: int = 0, purpose: str = "accuracy") -> Estimate:
    """Mean accuracy over questions, each question weighing the same however many samples it has.

    Where every question is wholly right or wholly wrong this is a plain rate over questions, so the interval is
    Wilson's. So it is where fewer than `FEW` questions are anything but 0 (or anything but 1), of which a bootstrap
    would know too little. Else it is a bootstrap over questions.
    """
    values = [np.asarray(samples, dtype=np.float64) for samples in by_question.values() if len(samples)]
    return _rate_of([float(v.mean()) for v in values], seed, purpose)


def _rate_of(means: Sequence[float], seed: int, purpose: str) -> Estimate:
    off_the_edge = min(sum(mean > 0 for mean in means), sum(mean < 1 for mean in means))
    if means and (off_the_edge < FEW or all(mean in (0.0, 1.0) for mean in means)):
        return wilson(math.fsum(means), len(means))
    return bootstrap(means, seed=seed, purpose=purpose)


def pass_at(by_question: Mapping[str, Sequence[bool]], k: int, *, seed: int = 0) -> Estimate:
    """Mean unbiased pass@k over questions, its interval as in `rate`. Raises ValueError where a question has under k
    samples."""
    n = [len(samples) for samples in by_question.values()]
    c = [sum(map(bool, samples)) for samples in by_question.values()]
    return _rate_of(list(map(float, pass_at_k(n, c, k))), seed, f"pass@{k}")


def paired_difference(
    a: Mapping[str, float], b: Mapping[str, float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Paired:
    """How much better `b` is than `a`: both map question ids to a mean accuracy; only questions that both have count.

    The interval resamples questions. Where fewer than `FEW` of them differ, of which a bootstrap would know too little
    (none that differs would leave it no width at all), it is that of Bonett and Price for paired shares (Journal of
    Educational and Behavioral Statistics 37, 2012), wide enough for accuracies between 0 and 1 too. The p-value flips
    the signs of the differences (exact where few differ, else `(1 + hits) / (1 + draws)`). Raises ValueError where they
    share no question.
    """
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ValueError("the two runs share no question id, so there is no paired difference")
    differences = np.array([b[key] - a[key] for key in shared], dtype=np.float64)
    few = len(differences) > 1 and np.count_nonzero(differences) < FEW
    return Paired(
        _few_differ(differences) if few else bootstrap(differences, seed=seed, purpose="paired", resamples=resamples),
        _sign_flip(differences, keyed_generator(seed, f"paired/flips/{len(shared)}"), resamples),
    )


def _few_differ(differences: Floats) -> Estimate:
    """Bonett and Price: as if one question more had been gained, and one more lost."""
    mean, n = float(differences.mean()), len(differences)
    up, down = ((float(np.clip(sign * differences, 0.0, None).sum()) + 1) / (n + 2) for sign in (1, -1))
    half = _normal_quantile((1 + LEVEL) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Estimate(mean, max(min(up - down - half, mean), -1.0), min(max(up - down + half, mean), 1.0), n)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of paired differences (one a seed): how often flipped signs give a mean as far from 0. Exact
    for up to 12 that are not 0. 1 without any."""
    return _sign_flip(np.asarray(differences, dtype=np.float64), keyed_generator(0, "sign flips"), RESAMPLES)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979): the k-th smallest of
    m times m - k + 1, never below a smaller one's and at most 1."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = least
    return corrected


def _sign_flip(differences: Floats, random: np.random.Generator, draws: int) -> float:
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) - 1e-9  # sums that differ by rounding alone are ties
    if len(moved) <= _EXACT_FLIPS:
        bits = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float((np.abs((2 * bits - 1) @ moved) >= observed).mean())
    rows = max(1, _CHUNK // len(moved))
    hits = 0
    for start in range(0, draws, rows):
        signs = random.integers(0, 2, (min(rows, draws - start), len(moved)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ moved) >= observed).sum())
    return (1 + hits) / (1 + draws)


def by_group(rows: Iterable[tuple[Hashable, str, float]], *, seed: int = 0) -> dict[str, Estimate]:
    """Accuracy by group (a family, a level). `rows` are (group, question id, accuracy of one sample); groups come
    sorted."""
    groups: dict[str, dict[str, list[float]]] = {}
    for group, question, accuracy in rows:
        groups.setdefault(str(group), {}).setdefault(question, []).append(accuracy)
    return {group: rate(groups[group], seed=seed, purpose=f"group/{group}") for group in sorted(groups)}


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t interval (n - 1 degrees of freedom). One seed has no interval (NaN bounds)."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Estimate(float(x[0]) if len(x) else math.nan, math.nan, math.nan, len(x))
    from scipy.stats import t  # imported here: scipy.stats takes a second

    half = float(t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))
