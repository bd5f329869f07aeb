"""A tree of 64 leaves and 50,000 tokens, larger than what the page draws at once."""

from array import array
from random import Random

from arpo.core.branching import Never, StepStats
from arpo.core.credit import AdvantageConfig, ScoredTree, credit
from arpo.core.expansion import ExpansionConfig
from arpo.core.place import Place, show
from arpo.core.record import TreeRecord
from arpo.core.score import Score
from arpo.core.tree import CallStatus, Observation, Prompt, Role, RolloutTree, StopReason, ToolCallResult, Turn

TASK = "large"
VOCABULARY = 40_000


def large_tree(leaves: int = 64, tokens: int = 50_000) -> TreeRecord:
    """A tree of 8 roots, each with a trunk of three results, and siblings at its tips; every segment of about the same
    length."""
    random = Random("large")
    places: list[Place] = []  # turns in the order in which they grow
    for root in range(8):
        line: Place = (root,)
        for _ in range(3):
            places.append(line)
            line = (*line, 0)
        places.append(line)
    tips = [place for place in places if len(place) < 4]
    siblings = dict.fromkeys(tips, 1)
    while len(places) - len(tips) < leaves:
        tip = tips[len(places) % len(tips)]
        places.append((*tip, siblings[tip]))
        siblings[tip] += 1
    length = (tokens - 200) // (len(places) + len(tips))
    tree = RolloutTree(TASK, 1, Prompt(tokens=_drawn_tokens(random, 200)))
    for place in sorted(places):
        role = Role.ROOT if len(place) == 1 else Role.SIBLING if place[-1] else Role.PROBE
        entropies = array("f", (random.expovariate(2) for _ in range(length)))
        logprobs = array("f", (-random.expovariate(2) for _ in range(length)))
        tree.grow(
            Turn(place=place, role=role, tokens=_drawn_tokens(random, length), logprobs=logprobs, entropies=entropies)
        )
        if place in siblings:
            outcome = ToolCallResult(
                tool="search", status=CallStatus.OK, text="what was found " * (length // 3), seconds=0.1
            )
            tree.grow(Observation(place=place, tokens=_drawn_tokens(random, length), outcomes=(outcome,)))
        else:
            tree.end(place, StopReason.FINISHED)
    scores = {
        leaf: Score(reward=(r := float(random.random() < 0.5)), accuracy=r, parts={"answer": r})
        for leaf in tree.leaves()
    }
    (credited,) = credit([ScoredTree(tree, scores)], AdvantageConfig())
    task = {"id": TASK, "source": "", "question": "a large tree", "answers": ["yes"], "family": "large"}
    texts = {show(place): "words that the policy wrote " * (length // 5) for place in tree.turns}
    config = ExpansionConfig(
        leaves=leaves, roots=8, rule=Never(), head=10, vocab_size=VOCABULARY, stats=StepStats(step=1), seed=0
    )
    return TreeRecord(
        config=config,
        tree=tree,
        events=(),
        decisions={},
        scores=scores,
        advantages=credited.advantages,
        credit=credited.credit,
        notes={
            "task": task,
            "texts": texts,
            "prompt": "a prompt " * 100,
            "answers": {},
            "failures": [],
            "discarded": {},
        },
    )


def _drawn_tokens(random: Random, number: int) -> array:
    return array("i", (random.randrange(VOCABULARY) for _ in range(number)))
