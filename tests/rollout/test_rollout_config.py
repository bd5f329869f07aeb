"""The part of a recipe that is about rollouts, and the agent seen by whoever talks to it."""

import io

import pytest
from small_world import ANSWER, Script, Search, agent, config, results_in, search, task

from arpo.core import Never, Pilot
from arpo.core.branching import Constant, Paper
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.rollout.ask import ask
from arpo.rollout.config import RolloutConfig
from virtual_time import run


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


def test_talking_shows_turns_and_results_once_and_in_order(tokenizer):
    def play(prompt, params):
        return Script(said="<think>Lima it is.</think>" + ANSWER) if results_in(tokenizer, prompt) else search()

    shown = io.StringIO()
    console = Console(file=shown, width=200)
    said = run(ask(agent(tokenizer, play, Search()), task().messages, config(), console, seed=0))
    assert said == "Lima"
    text = shown.getvalue()
    parts = ["<search>capital</search>", "<result>Peru: capital is Lima.</result>", "<answer>Lima</answer>"]
    assert [text.count(part) for part in parts] == [1, 1, 1]
    assert sorted(parts, key=text.index) == parts


def test_talking_says_why_an_answer_did_not_come(tokenizer):
    shown = io.StringIO()
    play = lambda prompt, params: Script(said=ANSWER, fails_after=0)  # noqa: E731
    assert run(ask(agent(tokenizer, play), task().messages, config(), Console(file=shown, width=200), seed=0)) == ""
    assert "[ended: engine failed: the script fails after 0 tokens]" in shown.getvalue()
