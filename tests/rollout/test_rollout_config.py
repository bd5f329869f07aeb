"""The part of a recipe that is about rollouts, and its sizes."""

import pytest

from arpo.core import Never, Pilot
from arpo.core.branching import Paper
from arpo.core.roots import Constant
from arpo.errors import ConfigError
from arpo.rollout.config import RolloutConfig
from small_world import config


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("paper", Paper()),
        ({"rule": "paper", "beta": 0.4}, Paper(beta=0.4)),
        ({"beta": 0.4}, Paper(beta=0.4)),
        (Paper(beta=0.4), Paper(beta=0.4)),
        ("none", Never()),
    ],
)
def test_a_rule_by_name_by_parts_or_as_an_object(given, meant):
    assert RolloutConfig(rule=given).rule == meant


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (4, 4),
        ("pilot", Pilot()),
        ({"beta": 2.0}, Pilot(beta=2.0)),
        (Pilot(beta=2.0), Pilot(beta=2.0)),
        (Constant(roots=4), 4),
    ],
)
def test_roots_as_a_number_or_a_plan(given, meant):
    assert RolloutConfig(roots=given).roots == meant


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"leaves": 4, "roots": 5}, "roots"),
        ({"head": 513}, "head"),
        ({"turn_tokens": 4096}, "branch_tokens"),
        ({"root_cap": 1}, "root_cap"),
        ({"max_calls": 0}, "max_calls"),
        ({"rule": "papyr"}, "papyr"),
        ({"rule": {"rule": "paper", "betta": 1}}, "betta"),
        ({"roots": 0}, "roots"),
        ({"temperature": 0}, "temperature"),
        ({"leafs": 3}, "leafs"),
    ],
)
def test_what_cannot_work_is_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        RolloutConfig(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"leaves": 8}, "roots (8) is rollout.leaves"),  # a recipe's roots, and fewer leaves on the command line
        ({"roots": "pilot", "root_cap": 1}, "root_cap"),
        ({"rule": {"rule": "fixed", "at": 4}, "max_calls": 3}, "none of 3 calls"),
        ({"rule": {"rule": "random", "rates": [0.0]}}, "rule"),
        ({"leaves": 8, "rule": "none"}, ""),
        ({"rule": {"rule": "fixed", "at": 3}, "max_calls": 3}, ""),
        ({"rule": {"rule": "random", "rates": [0.0, 0.1]}}, ""),
        ({"roots": "pilot"}, ""),
        ({}, ""),
    ],
)
def test_a_rule_that_can_never_branch_is_found(values, says):
    why = RolloutConfig(**values).never_branches
    assert says in why and bool(says) == bool(why)


def test_flat_keeps_the_limits_and_drops_the_branches():
    branching = config(leaves=8, roots="pilot", root_cap=3, max_calls=5)
    flat = branching.flat(leaves=3, temperature=0.0)
    assert (flat.leaves, flat.roots, flat.root_cap, flat.rule, flat.temperature) == (3, 3, None, Never(), 0.0)
    assert (flat.max_calls, flat.turn_tokens, flat.branch_tokens, flat.head) == (5, 60, 2000, 4)
    assert branching.leaves == 8


@pytest.mark.parametrize(("leaves", "roots"), [(1, 1), (2, 1), (3, 2), (8, 4), (16, 8)])
def test_sized_keeps_the_rule_and_the_proportion_of_roots(leaves, roots):
    sized = config(leaves=8, roots=4, max_calls=5).sized(leaves)
    assert (sized.leaves, sized.roots, sized.max_calls) == (leaves, roots, 5)
    assert isinstance(sized.rule, Never if leaves == 1 else Paper)
    assert RolloutConfig(**{name: getattr(sized, name) for name in RolloutConfig.model_fields}) == sized, "it is valid"


def test_sized_keeps_a_pilot_and_never_branches_where_the_recipe_does_not():
    assert config(leaves=8, roots="pilot", root_cap=3).sized(4).roots == Pilot()
    assert config(leaves=8, roots=2, root_cap=4).sized(6).root_cap == 4
    assert config(leaves=8, roots=5, root_cap=2).sized(3).root_cap == 2
    flat = config(leaves=8, roots=2, rule="none").sized(6)
    assert (flat.leaves, flat.roots, flat.rule) == (6, 6, Never())
