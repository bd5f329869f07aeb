"""The losses against scalar formulas, one number at a time; and what must hold of them whatever the numbers."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.errors import ConfigError
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.losses import Objective, check_surrogate, loss_denominator, metrics, policy_loss, ppo
from arpo.learner.packing import pack
from random_trees import credited, random_tree

configs = st.builds(
    lambda aggregation, surrogate, dual_clip, **rest: LossConfig(
        aggregation=aggregation,
        surrogate=surrogate,
        dual_clip=None if surrogate == "cispo" else dual_clip,
        **rest,
    ),
    aggregation=st.sampled_from(["sequence", "token", 9]),
    surrogate=st.sampled_from(["ppo", "ppo", "gspo", "cispo", "aepo"]),
    clip_low=st.sampled_from([0.1, 0.2]),
    clip_high=st.sampled_from([0.2, 0.28]),
    dual_clip=st.sampled_from([None, 1.3, 3.0]),
    tis_cap=st.sampled_from([None, 1.1, 2.0]),
    kl_coefficient=st.sampled_from([0.0, 0.1]),
    entropy_coefficient=st.sampled_from([0.0, 0.05]),
)


def batch(seed: int, rows: int = 4, length: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(rows, length, generator=generator, dtype=torch.float64)

    logprob = draw() - 2
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return {
        "logprob_BL": logprob.requires_grad_(),
        "old_logprob_BL": logprob.detach() + draw(0.4),
        "engine_logprob_BL": logprob.detach() + draw(0.4),
        "advantage_BL": draw(),
        "mask_BL": torch.arange(length)[None] < lengths,
        "reference_logprob_BL": logprob.detach() + draw(0.4),
        "entropy_BL": draw().abs().requires_grad_(),
    }


def norm_of(mask_BL: torch.Tensor, config: LossConfig) -> float:
    return loss_denominator(len(mask_BL), int(mask_BL.sum()), config)


def by_hand(values: dict[str, torch.Tensor], config: LossConfig) -> float:
    """Section 7, a token at a time."""
    rows = []
    for row, mask in enumerate(values["mask_BL"].tolist()):
        terms = []
        whole = sum(
            float(values["logprob_BL"][row, at] - values["old_logprob_BL"][row, at]) for at in range(sum(mask))
        ) / sum(mask)
        for at in range(sum(mask)):
            logprob, old, engine, advantage, reference, entropy = (
                float(values[name][row, at])
                for name in (
                    "logprob_BL",
                    "old_logprob_BL",
                    "engine_logprob_BL",
                    "advantage_BL",
                    "reference_logprob_BL",
                    "entropy_BL",
                )
            )
            ratio = math.exp(whole if config.surrogate == "gspo" else logprob - old)
            term = min(ratio * advantage, min(max(ratio, 1 - config.clip_low), 1 + config.clip_high) * advantage)
            if config.surrogate == "cispo":
                term = min(ratio, 1 + config.clip_high) * advantage
            if config.dual_clip is not None and advantage < 0:
                term = max(term, config.dual_clip * advantage)
            if config.tis_cap is not None:
                weight = old - engine
                if config.surrogate == "gspo":
                    both = (values[name][row][: sum(mask)] for name in ("old_logprob_BL", "engine_logprob_BL"))
                    weight = float(next(both).mean() - next(both).mean())
                term *= min(math.exp(weight), config.tis_cap)
            term -= config.kl_coefficient * (math.exp(reference - logprob) - (reference - logprob) - 1)
            terms.append(term + config.entropy_coefficient * entropy)
        rows.append(terms)
    if config.aggregation == "sequence":
        return -sum(sum(terms) / len(terms) for terms in rows) / len(rows)
    if config.aggregation == "token":
        return -sum(map(sum, rows)) / sum(map(len, rows))
    return -sum(map(sum, rows)) / (len(rows) * config.aggregation)


@given(st.integers(0, 10_000), configs)
@settings(max_examples=30, deadline=None)
def test_the_loss_is_the_formula(seed: int, config: LossConfig):
    values = batch(seed)
    loss, report = policy_loss(**values, config=config, denominator=norm_of(values["mask_BL"], config))
    assert float(loss.detach()) == pytest.approx(by_hand(values, config), abs=1e-12)
    assert report.loss == float(loss)


@given(st.integers(0, 10_000), configs)
@settings(max_examples=20, deadline=None)
def test_parts_add_up_to_the_whole(seed: int, config: LossConfig):
    values = batch(seed)
    norm = norm_of(values["mask_BL"], config)
    whole, report = policy_loss(**values, config=config, denominator=norm)
    gradient = torch.autograd.grad(whole, values["logprob_BL"])[0]
    parts = [
        policy_loss(**{k: v[rows] for k, v in values.items()}, config=config, denominator=norm)
        for rows in ([0], [1, 2], [3])
    ]
    total = sum(loss for loss, _ in parts)
    assert float(total) == pytest.approx(float(whole), abs=1e-14)
    assert torch.allclose(torch.autograd.grad(total, values["logprob_BL"])[0], gradient, atol=1e-14)
    assert metrics([part for _, part in parts], config) == pytest.approx(metrics([report], config), abs=1e-6)


@given(st.integers(0, 10_000), configs, st.sampled_from([math.inf, -math.inf, math.nan, 1e30]))
@settings(max_examples=20, deadline=None)
def test_nothing_outside_the_mask_counts(seed: int, config: LossConfig, poison: float):
    values = batch(seed)
    norm = norm_of(values["mask_BL"], config)
    clean, _ = policy_loss(**values, config=config, denominator=norm)
    wanted = torch.autograd.grad(clean, values["logprob_BL"])[0]
    assert (wanted[~values["mask_BL"]] == 0).all()
    spoiled = {
        k: v if k == "mask_BL" else v.detach().masked_fill(~values["mask_BL"], poison) for k, v in values.items()
    }
    spoiled["logprob_BL"].requires_grad_()
    loss, report = policy_loss(**spoiled, config=config, denominator=norm)
    assert float(loss) == float(clean)
    assert torch.equal(torch.autograd.grad(loss, spoiled["logprob_BL"])[0], wanted)
    assert all(math.isfinite(figure) for figure in metrics([report], config).values())


@pytest.mark.parametrize("seed", range(20))
def test_attributions_agree_at_the_first_update_under_token_mean(seed: int):
    """Hard, soft and blended credit give one gradient (section 6), unless the correction weighs rows differently: it
    cannot."""
    tree = random_tree(seed, roots=2, leaves=8)
    config = LossConfig(aggregation="token")
    gradients = []
    for blend in (0.0, 0.3, 1.0):
        [packed] = pack([credited(tree.tree, dict(tree.advantages), blend)], 10**6)
        generator = torch.Generator().manual_seed(seed)
        logprob_P = torch.randn(len(packed.predicts_P), generator=generator, dtype=torch.float64, requires_grad=True)
        loss, _ = policy_loss(
            packed.rows(logprob_P),
            None,
            packed.engine_logprob_BL.double(),
            credit_of(packed, tree, blend),
            packed.row_mask_BL,
            config,
            denominator=loss_denominator(len(packed.leaves), packed.num_policy, config),
        )
        gradients.append(torch.autograd.grad(loss, logprob_P)[0])
    assert float(gradients[0].abs().max()) > 0
    for gradient in gradients[1:]:
        assert float((gradient - gradients[0]).abs().max()) < 1e-12


def credit_of(packed, tree, blend: float) -> torch.Tensor:
    """The pack's advantages in float64: the pack itself holds float32."""
    exact = credited(tree.tree, dict(tree.advantages), blend)
    advantage_BL = torch.zeros(packed.row_mask_BL.shape, dtype=torch.float64)
    for row, (_, leaf) in enumerate(packed.leaves):
        numbers = [exact.credit[turn.place, leaf] for turn in tree.tree.branch(leaf).turns for _ in turn.tokens]
        advantage_BL[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    assert torch.allclose(advantage_BL.float(), packed.advantage_BL, atol=1e-6)
    return advantage_BL


def test_the_first_update_is_the_policy_gradient():
    values = batch(3) | {"old_logprob_BL": None}
    config = LossConfig(aggregation="token", tis_cap=None)
    loss, report = policy_loss(**values, config=config, denominator=norm_of(values["mask_BL"], config))
    gradient = torch.autograd.grad(loss, values["logprob_BL"])[0]
    expected = torch.where(values["mask_BL"], -values["advantage_BL"], 0.0) / values["mask_BL"].sum()
    assert torch.allclose(gradient, expected, atol=1e-15)
    figures = metrics([report], config)
    assert figures["ratio_min"] == figures["ratio_max"] == 1 and figures["clipped_high"] == figures["clipped_low"] == 0


def test_a_clipped_token_has_no_gradient_and_is_counted():
    logprob = torch.tensor([[0.5, 0.5, -0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    zeros, mask = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    config = LossConfig(aggregation="token")
    loss, report = policy_loss(logprob, zeros, zeros, advantage, mask, config, denominator=4.0)
    gradient = torch.autograd.grad(loss, logprob)[0][0]
    assert (gradient != 0).tolist() == [False, True, True, False]
    figures = metrics([report], config)
    assert figures["clipped_high"] == figures["clipped_low"] == 0.25 and figures["mismatch_abs_max"] == 0
    config = LossConfig(aggregation="token", dual_clip=1.2)
    loss, report = policy_loss(logprob, zeros, zeros, advantage, mask, config, denominator=4.0)
    assert (torch.autograd.grad(loss, logprob)[0][0] != 0).tolist() == [False, False, True, False]
    assert metrics([report], config)["clipped_dual"] == 0.25


@pytest.mark.parametrize("surrogate", ["ppo", "gspo", "cispo", "aepo"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_float32_spoils_no_other_token(surrogate: str, advantage: float):
    """The first token's ratio is e^99. Where clipping bounds its value, its gradient is 0 or bounded too, and never
    NaN."""
    logprob = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]], requires_grad=True)
    old, mask = torch.tensor([[-100.0, -1.0], [-1.0, -1.0]]), torch.ones(2, 2, dtype=torch.bool)
    config = LossConfig(surrogate=surrogate, dual_clip=None if surrogate == "cispo" else 3.0)
    loss, _ = policy_loss(logprob, old, old, torch.full_like(old, advantage), mask, config, denominator=2.0)
    gradient = torch.autograd.grad(loss, logprob)[0]
    assert math.isfinite(loss.item()) and float(gradient.abs().max()) <= 1
    assert gradient[1].tolist() == pytest.approx([-advantage / 4] * 2)


def test_the_correction_has_no_gradient_and_is_truncated():
    logprob = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    engine = torch.tensor([[-2.0, 0.5]], dtype=torch.float64)
    mask, ones = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.float64)
    config = LossConfig(aggregation="token", tis_cap=2.0)
    loss, report = policy_loss(logprob, None, engine, ones, mask, config, denominator=2.0)
    assert torch.autograd.grad(loss, logprob)[0][0].tolist() == pytest.approx([-2.0 / 2, -math.exp(-0.5) / 2])
    figures = metrics([report], config)
    assert figures["mismatch_truncated"] == 0.5 and figures["mismatch_abs_max"] == 2.0
    assert figures["mismatch_kl"] == pytest.approx((math.expm1(2) - 2 + math.expm1(-0.5) + 0.5) / 2)


def gradients(surrogate, log_ratio, advantage: float, **config) -> list[float]:
    """Of the value of one row by its log-probabilities."""
    logprob_BL = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    zeros, mask = torch.zeros_like(logprob_BL), torch.ones(logprob_BL.shape, dtype=torch.bool)
    settings = LossConfig(surrogate=surrogate, aggregation="sequence", **config)
    loss, _ = policy_loss(logprob_BL, zeros, zeros, torch.full_like(zeros, advantage), mask, settings, denominator=1.0)
    return (-torch.autograd.grad(loss, logprob_BL)[0][0]).tolist()


def test_gspo_moves_all_tokens_of_a_row_alike_or_none():
    """The gradient of `s A` with s = exp(mean log-ratio) is `s A / length` for each token; of a clipped s it is 0."""
    low, high = [0.3, -0.1, -0.14], [0.3, -0.1, 0.4]  # means 0.02 and 0.2: clipped where A > 0
    assert gradients("gspo", low, 2.0, clip_high=0.1) == pytest.approx([math.exp(0.02) * 2 / 3] * 3)
    assert gradients("gspo", high, 2.0, clip_high=0.1) == [0.0] * 3
    assert gradients("gspo", high, -2.0, clip_high=0.1) == pytest.approx([math.exp(0.2) * -2 / 3] * 3)


def test_cispo_keeps_every_gradient_and_clips_its_weight():
    found = gradients("cispo", [-3.0, 0.1, 3.0], 2.0)
    assert found == pytest.approx([math.exp(-3) * 2 / 3, math.exp(0.1) * 2 / 3, 1.2 * 2 / 3])
    assert gradients("cispo", [-3.0, 0.1, 3.0], -2.0) == pytest.approx([-g for g in found])


def test_aepo_keeps_the_gradient_of_what_is_clipped_above_and_is_ppo_elsewhere():
    ratios = [-3.0, 0.1, 3.0]
    plain, kept = (gradients(name, ratios, 2.0) for name in ("ppo", "aepo"))
    assert plain[2] == 0 and kept == [*plain[:2], pytest.approx(1.2 * 2 / 3)]
    assert gradients("aepo", ratios, -2.0) == gradients("ppo", ratios, -2.0)
    assert gradients("ppo", ratios, -2.0)[0] == 0, "clipped below it stays without one"


def first_tokens(log_ratio_BL, advantage_BL, mask_BL, config):
    """A surrogate of one's own: PPO on the first two tokens of a row."""
    whole = ppo(log_ratio_BL, advantage_BL, mask_BL, config)
    early_BL = (mask_BL.cumsum(1) <= 2).expand_as(mask_BL)
    return Objective(torch.where(early_BL, whole.value_BL, 0.0), {"left_out": ~early_BL})


@pytest.mark.parametrize("given", [first_tokens, "test_losses:first_tokens"], ids=["object", "path"])
def test_a_surrogate_of_ones_own(given):
    config = LossConfig(surrogate=given, tis_cap=None)
    values = batch(9)
    loss, report = policy_loss(**values, config=config, denominator=4.0)
    moved = torch.autograd.grad(loss, values["logprob_BL"])[0] != 0
    assert moved[:, :2].any() and not moved[:, 2:].any()
    assert 0 < metrics([report], config)["left_out"] < 1


def test_a_surrogate_sees_tokens_and_a_mask_keeps_tokens_out_of_the_loss():
    tree = random_tree(4)
    mask = {(turn, leaf): [False] * len(tree.tree.turns[turn].tokens) for turn, leaf in tree.credit if len(turn) > 1}
    [packed] = pack([replace(tree, mask=mask)], 10**6)
    first_BL = packed.turn_BL.eq(0) & packed.row_mask_BL
    assert torch.equal(packed.trained_BL, first_BL) and int(packed.turn_BL.max()) > 0
    seen = []

    def watching(log_ratio_BL, advantage_BL, mask_BL, config, *, tokens):
        seen.append(tokens)
        return ppo(log_ratio_BL, advantage_BL, mask_BL, config)

    logprob_BL = torch.zeros(packed.row_mask_BL.shape, requires_grad=True)
    loss, _ = policy_loss(
        logprob_BL,
        None,
        packed.engine_logprob_BL,
        packed.advantage_BL,
        packed.row_mask_BL,
        LossConfig(surrogate=watching, tis_cap=None, aggregation="token"),
        denominator=float(packed.num_policy),
        entropy_BL=packed.entropy_BL,
        trained_BL=packed.trained_BL,
        turn_BL=packed.turn_BL,
    )
    assert torch.equal(torch.autograd.grad(loss, logprob_BL)[0] != 0, first_BL)
    assert torch.equal(seen[0].turn_BL, packed.turn_BL) and torch.equal(seen[0].entropy_BL, packed.entropy_BL)
    assert seen[0].position_BL[0].tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda log_ratio, advantage, mask, config: log_ratio, "returns Tensor, not an Objective"),
        (lambda log_ratio, advantage, mask, config: Objective(log_ratio.sum(1), {}), r"returns values of \(2,\)"),
    ],
)
def test_a_surrogate_that_gives_no_objective_is_found_before_anything_is_computed(wrong, says):
    with pytest.raises(ConfigError, match=says):
        check_surrogate(LossConfig(surrogate=wrong, kl_coefficient=0.1, entropy_coefficient=0.1))


@pytest.mark.parametrize("name", ["ppo", "gspo", "cispo", "aepo", "test_losses:first_tokens"])
def test_surrogates_that_are_in_order_pass(name):
    check_surrogate(LossConfig(surrogate=name))


def test_what_is_asked_for_must_be_given():
    values = {k: v for k, v in batch(1).items() if k not in ("reference_logprob_BL", "entropy_BL")}
    with pytest.raises(ConfigError, match="kl_coefficient"):
        policy_loss(**values, config=LossConfig(kl_coefficient=0.1), denominator=1.0)
    with pytest.raises(ConfigError, match="entropy_coefficient"):
        policy_loss(**values, config=LossConfig(entropy_coefficient=0.1), denominator=1.0)


def test_an_empty_batch_has_loss_zero():
    assert metrics([], LossConfig()) == {"loss": 0, "tokens": 0.0}
    nothing, mask = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, dtype=torch.bool)
    loss, report = policy_loss(
        nothing, None, nothing, nothing, mask, LossConfig(), denominator=loss_denominator(0, 0, LossConfig())
    )
    assert float(loss) == 0 and metrics([report], LossConfig())["tokens"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggregation": "constant"},
        {"aggregation": 0},
        {"clip_low": 1.5},
        {"dual_clip": 0.9},
        {"surrogate": "pp"},
        {"surrogate": "cispo", "dual_clip": 3.0},
        {"clip": 0.2},
    ],
)
def test_impossible_losses_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        LossConfig(**wrong)


@pytest.mark.parametrize(
    ("path", "says"), [("no_such:thing", "cannot import"), ("math:sinus", "has no"), ("math:pi", "is no surrogate")]
)
def test_a_surrogate_that_cannot_be_had_is_named(path: str, says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        LossConfig(surrogate=path)
    assert caught.value.where == "loss.surrogate" and caught.value.value == path


def test_the_rate_rises_and_falls():
    config = OptimConfig(lr=1.0, schedule="cosine", warmup=0.2, final_lr=0.1)
    rates = [config.rate(update, 10) for update in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0] and 0.1 < rates[9] == rates[11] < 0.2
    assert rates[2:10] == sorted(rates[2:10], reverse=True)
    assert OptimConfig(lr=2.0).rate(0, 5) == OptimConfig(lr=2.0).rate(4, 5) == 2.0
    assert OptimConfig(lr=1.0, schedule="linear").rate(2, 5) == pytest.approx(0.6)
    assert OptimConfig(lr=1.0, schedule="linear").rate(0, 1) == 1.0
    assert OptimConfig(lr=1.0, schedule="linear").rate(4, 5) == pytest.approx(0.2), "the last update learns too"
    with pytest.raises(ConfigError):
        OptimConfig(betas=(0.9, 1.0))
