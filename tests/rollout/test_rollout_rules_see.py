"""What a branching rule may see of a tip beside entropies: the turn's text, how its calls ended, and their results."""

from arpo.core import decode, encode, replay
from arpo.core.branching import Decision
from arpo.core.tree import CallStatus
from arpo.rollout.collect import record_of
from small_world import Search, agent, config, rollouts, task, unsure
from virtual_time import run


class Reading:
    """One sibling after calls that went well, of a turn that thought of Peru, with a short result."""

    def __init__(self) -> None:
        self.tips = []

    def __call__(self, tip, stats, random):
        self.tips.append(tip)
        wanted = tip.statuses == (CallStatus.OK,) and "Peru" in tip.text and tip.result_chars < 30
        return Decision(wanted=int(wanted), score=float(tip.result_tokens))

    def most(self, depth):
        return 1


def test_a_rule_sees_the_turn_and_its_results_and_replays(tokenizer):
    who, branched = agent(tokenizer, unsure, Search()), 0
    for number in range(4):
        rule = Reading()
        (rollout,) = run(rollouts(who, config(leaves=8, roots=3, rule=rule), task(number)))
        tree, parsed = rollout.grown.tree, rollout.grown.parsed
        assert {tip.place for tip in rule.tips} <= set(tree.observations)
        for tip in rule.tips:
            seen = tree.observations[tip.place]
            assert tip.text == parsed[tip.place].text and tip.turn is tree.turns[tip.place]
            assert tip.statuses == tuple(outcome.status for outcome in seen.outcomes)
            assert tip.result_tokens == len(seen.tokens)
            assert tip.result_chars == sum(len(outcome.text) for outcome in seen.outcomes)
        granted = [place for place, made in rollout.grown.expansion.decisions.items() if made.decided.granted]
        branched += len(granted)
        assert all("Peru" in parsed[place].text for place in granted)
        (record,) = decode(encode(record_of(rollout)))
        assert replay(record, rule=Reading()) == tree
    assert branched, "the rule never branched, which tests nothing"
