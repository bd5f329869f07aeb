"""A simulated cluster: the figures are those of arithmetic where nothing is random, and its laws hold where all is."""

from dataclasses import asdict, replace

import pytest
from _simulated import Run, Setting

ALIKE = Setting(
    servers=1,
    tasks=1,
    mini_batches=1,
    roots=1,
    leaves=1,
    turn_spread=0.0,
    step_s=0.01,
    request_s=0.001,
    tool_s=2.0,
    driver_token_s=1e-4,
    driver_turn_s=0.01,
    pack_s=3.0,
    write_s=1.0,
    load_s=0.5,
    staleness=0,
)
VARIED = replace(
    ALIKE, servers=4, ranks=2, tasks=8, roots=2, leaves=4, turn_spread=0.8, tool_spread=0.5, tool_failures=0.05
)


def test_one_path_takes_the_sum_of_its_parts():
    sampling, calls, reading = 3 * 400 * 0.011, 2 * 2.0, 3 * (0.01 + 400 * 1e-4)
    step_s = sampling + calls + reading + 3.0 + 1.0 + 0.5
    found = Run(ALIKE).measure(3)
    assert found.step_s == pytest.approx(step_s)
    assert found.servers == pytest.approx(sampling / step_s)
    assert found.driver == pytest.approx(reading / step_s)
    assert found.learner == found.ranks == pytest.approx(3.0 / step_s)
    assert found.loading == pytest.approx(0.5 / step_s)
    assert found.gpus == pytest.approx((sampling + 3.0) / step_s / 2)
    assert found.requests == pytest.approx(1) and found.staleness == 0


def test_requests_of_a_batch_slow_one_another_and_a_full_one_makes_others_wait():
    roots = replace(ALIKE, roots=4, leaves=4, turns=1, driver_token_s=0, driver_turn_s=0)
    rest = 3.0 + 1.0 + 0.5
    assert Run(roots).measure(3).step_s == pytest.approx(400 * (0.01 + 4 * 0.001) + rest)
    assert Run(replace(roots, slots=2)).measure(3).step_s == pytest.approx(2 * 400 * (0.01 + 2 * 0.001) + rest)


def test_rounds_of_packs_are_those_of_the_slowest_rank():
    tokens = 300 + 3 * 400 + 2 * 300
    packs = replace(ALIKE, tasks=10, pack_tokens=tokens, pack_s=100.0)  # 10 packs
    assert Run(packs).measure(3).learner * Run(packs).measure(3).step_s == pytest.approx(1000.0)
    over_4 = Run(replace(packs, ranks=4)).measure(3)
    assert over_4.learner * over_4.step_s == pytest.approx(300.0)
    assert over_4.ranks / over_4.learner == pytest.approx(10 / 12)


def test_whatever_is_slowest_sets_the_time_of_a_step_that_is_sampled_ahead():
    quick = replace(ALIKE, servers=50, tasks=50, staleness=1, pack_tokens=10**6)
    learner = Run(replace(quick, pack_s=200.0)).measure(5)
    assert learner.step_s == pytest.approx(200.0 + 1.0 + 0.5)
    assert learner.staleness == pytest.approx(1)
    reading = 50 * 3 * (1.0 + 400 * 1e-4)
    assert Run(replace(quick, driver_turn_s=1.0)).measure(5).step_s == pytest.approx(reading, rel=0.05)
    assert Run(replace(quick, driver_turn_s=1.0, drivers=2)).measure(5).step_s == pytest.approx(reading / 2, rel=0.1)
    assert Run(replace(quick, tool_rate=0.5)).measure(5).step_s == pytest.approx(50 * 2 / 0.5, rel=0.05)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_token_is_older_than_the_bound_and_the_same_seed_gives_the_same_figures(staleness: int):
    setting = replace(VARIED, staleness=staleness)
    found = Run(setting, seed=1).measure(6)
    assert found.staleness <= staleness + 1e-9
    assert asdict(found) == asdict(Run(setting, seed=1).measure(6)) != asdict(Run(setting, seed=2).measure(6))
    assert all(0 <= share <= 1 + 1e-9 for share in (found.gpus, found.servers, found.ranks, found.driver))


def test_failures_cost_time_and_lose_no_tree():
    whole = Run(VARIED, seed=1)
    failing = Run(replace(VARIED, gpu_hours=0.1, server_restart_s=30.0, learner_restart_s=30.0), seed=1)
    undisturbed, disturbed = whole.measure(20), failing.measure(20)
    assert disturbed.failures > 10
    assert disturbed.step_s > undisturbed.step_s
    a_tree = undisturbed.tokens_per_s * undisturbed.step_s
    assert disturbed.tokens_per_s * disturbed.step_s == pytest.approx(a_tree, rel=1e-6)
