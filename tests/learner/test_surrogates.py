"""Surrogates and weights against scalar formulas, a token at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import batch

from arpo.errors import ConfigError
from arpo.learner.config import LossConfig
from arpo.learner.losses import check_surrogate, policy_loss


def loss_of(surrogate, values, turn_BL, **config):
    settings = LossConfig(surrogate=surrogate, aggregation="token", **{"tis_cap": None, **config})
    known = {k: v for k, v in values.items() if k != "reference_logprob_BL"}
    return policy_loss(**known, config=settings, denominator=1.0, turn_BL=turn_BL)[0]


def value(name, lr, old, adv, row, turn):
    """What a token is worth, apart from gradients. `row`: (log-ratio, advantage, turn) of the row's tokens."""
    ratio = math.exp(lr)
    if name == "sapo":
        tau = 1.0 if adv > 0 else 1.05
        return adv * 4 / tau / (1 + math.exp(-tau * (ratio - 1)))
    if name == "dppo":
        moved = math.exp(lr + old) - math.exp(old)
        return 0.0 if (adv > 0 and moved > 0.2) or (adv < 0 and moved < -0.2) else min(ratio, 20) * adv
    if name == "gmpo":
        mean = sum(min(x, 0.4) if a >= 0 else max(x, -0.4) for x, a, _ in row) / len(row)
        return adv * math.exp(mean)
    if name == "gspo_turn":
        own = [x for x, _, t in row if t == turn]
        ratio = math.exp(sum(own) / len(own))
        return min(ratio * adv, min(max(ratio, 0.8), 1.2) * adv)
    if name == "cispo":
        return min(max(ratio, 0.8), 1.2) * adv
    raise AssertionError(name)


def weight(name, row, adv, mismatch):
    """`row`: (mismatch, engine - policy) of the row's tokens."""
    if name == "icepop":
        return float(0.5 <= math.exp(mismatch) <= 2)
    mean = sum(m for m, _ in row) / len(row)
    if name == "geometric":
        return float(0.8 <= math.exp(mean) <= 1.3)
    if name == "outlier":
        return float(all(0.5 <= math.exp(m) <= 2 for m, _ in row))
    if name == "off_policy":
        return float(not (adv < 0 and sum(d for _, d in row) / len(row) > 0.02))
    return min(math.exp(mean * len(row)), 2.0)


def correction(name, mismatch, t, cap):
    """The truncated importance weight of token `t`: as the surrogate's ratio is the row's, a turn's or the token's."""
    own = {"gmpo": mismatch, "gspo_turn": [m for i, m in enumerate(mismatch) if i // 3 == t // 3]}
    pooled = own.get(name, [mismatch[t]])
    return min(math.exp(sum(pooled) / len(pooled)), cap)


OPTIONS = {"geometric": {"low": 0.8, "high": 1.3}, "outlier": {"low": 0.5, "high": 2.0}}


@given(
    st.integers(0, 10_000),
    st.sampled_from(["sapo", "dppo", "gmpo", "gspo_turn", "cispo"]),
    st.sampled_from([None, "icepop", "geometric", "outlier", "off_policy", "sequence"]),
    st.sampled_from([None, 1.2]),
)
@settings(max_examples=40, deadline=None)
def test_a_surrogate_is_its_formula(seed, name, weighing, cap):
    values = batch(seed)
    turn_BL = (torch.arange(7)[None] // 3).expand(4, 7) * values["mask_BL"]
    options = {"two_sided": True} if name == "cispo" else {}
    if weighing:
        options["weights"] = {weighing: OPTIONS.get(weighing, {})}
    total = 0.0
    for b in range(4):
        n = int(values["mask_BL"][b].sum())
        logp, old, engine, adv = (
            values[k][b, :n].tolist() for k in ("logprob_BL", "old_logprob_BL", "engine_logprob_BL", "advantage_BL")
        )
        row = [(logp[t] - old[t], adv[t], t // 3) for t in range(n)]
        sides = [(old[t] - engine[t], engine[t] - logp[t]) for t in range(n)]
        for t in range(n):
            worth = value(name, row[t][0], old[t], adv[t], row, t // 3)
            worth *= weight(weighing, sides, adv[t], sides[t][0]) if weighing else 1.0
            total += worth * (correction(name, [m for m, _ in sides], t, cap) if cap else 1.0)
    loss = loss_of({"use": name, "options": options}, values, turn_BL, tis_cap=cap)
    assert float(loss.detach()) == pytest.approx(-total, abs=1e-9)
    assert torch.isfinite(torch.autograd.grad(loss, values["logprob_BL"])[0]).all()


@pytest.mark.parametrize("name", ["sapo", "dppo", "gmpo", "gspo_turn"])
def test_the_first_update_is_the_policy_gradient(name):
    """At ratio 1 every surrogate has the gradient A (gmpo: spread over the row, which has one A)."""
    values = batch(3) | {"old_logprob_BL": None}
    values["advantage_BL"] = values["advantage_BL"][:, :1].expand(4, 7).clone()
    check_surrogate(LossConfig(surrogate=name))
    loss = loss_of(name, values, torch.zeros(4, 7, dtype=torch.int64))
    gradient = torch.autograd.grad(loss, values["logprob_BL"])[0]
    assert torch.allclose(gradient, torch.where(values["mask_BL"], -values["advantage_BL"], 0.0), atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"use": "sapo", "options": {"tua": 1.0}}, "no such option"),
        ({"use": "sapa"}, "no such surrogate"),
        ({"use": "ppo", "options": {"weights": {"icepob": {}}}}, "no such weight"),
        ({"use": "ppo", "options": {"weights": {"icepop": {"lo": 1}}}}, "no such option"),
        ({"use": "ppo", "options": {"weights": 3}}, "no mapping"),
    ],
)
def test_wrong_options_are_named(wrong, says):
    with pytest.raises(ConfigError, match=says):
        LossConfig(surrogate=wrong)
