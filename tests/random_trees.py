"""Random credited trees for the tests of packing, attention and losses: shapes and numbers from a seed, credit as in
section 6."""

from array import array
from random import Random

from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.place import Place
from arpo.core.score import Score
from arpo.core.tree import Observation, Prompt, Role, RolloutTree, StopReason, Turn


def random_tree(
    seed: int,
    *,
    roots: int = 3,
    leaves: int = 6,
    depth: int = 3,
    prompt: int = 4,
    turn: tuple[int, int] = (1, 5),
    observation: tuple[int, int] = (1, 4),
    vocab: int = 64,
    blend: float = 0.0,
    lost: float = 0.0,
    contexts: float = 0.0,
) -> CreditedTree:
    """A tree of at most `leaves` leaves from `roots` roots, at most `depth` turns a path. Lengths are drawn from the
    given ranges.

    `blend` is a of section 6 (0 soft, 1 hard); a share `lost` of leaves gets no credit (ended by the world); a
    share `contexts` of observations opens a context."""
    random = Random(f"tree/{seed}")
    tree = RolloutTree(f"task-{seed}", 0, Prompt(tokens=_tokens(random, prompt, vocab)))
    forks = max(leaves - roots, 0)
    tips: list[Place] = []

    def line(place: Place, role: Role) -> None:
        """One trajectory from `place` on, through probes."""
        while True:
            tree.grow(_turn(random, place, role, random.randint(*turn), vocab))
            if len(place) >= depth or random.random() < 0.2:
                return tree.end(place, StopReason.FINISHED)
            new = contexts > 0 and random.random() < contexts
            seen = _tokens(random, random.randint(*observation), vocab)
            tree.grow(Observation(place=place, tokens=seen, outcomes=(), new_context=new))
            tips.append(place)
            place, role = (*place, 0), Role.PROBE

    for root in range(roots):
        line((root,), Role.ROOT)
    while forks and tips:
        tip = random.choice(tips)
        line((*tip, len(tree.children(tip))), Role.SIBLING)
        forks -= 1
    return credited(tree, {leaf: random.gauss(0, 1) for leaf in tree.leaves() if random.random() >= lost}, blend)


def credited(tree: RolloutTree, advantages: dict[Place, float], blend: float) -> CreditedTree:
    """`A(s, i) = a mean_s + (1 - a) A_i` of section 6, with a = `blend`."""
    below: dict[Place, list[float]] = {}
    for leaf, advantage in advantages.items():
        for depth in range(1, len(leaf) + 1):
            below.setdefault(leaf[:depth], []).append(advantage)
    credit = {
        (leaf[:depth], leaf): blend * sum(below[leaf[:depth]]) / len(below[leaf[:depth]]) + (1 - blend) * advantage
        for leaf, advantage in advantages.items()
        for depth in range(1, len(leaf) + 1)
    }
    scores = {leaf: Score(reward=advantage, accuracy=0.0) for leaf, advantage in advantages.items()}
    return CreditedTree(ScoredTree(tree, scores), advantages, credit)


def _tokens(random: Random, length: int, vocab: int) -> array:
    return array("i", [random.randrange(vocab) for _ in range(length)])


def _turn(random: Random, place: Place, role: Role, length: int, vocab: int) -> Turn:
    return Turn(
        place=place,
        role=role,
        tokens=_tokens(random, length, vocab),
        logprobs=array("f", [-random.expovariate(0.3) for _ in range(length)]),
        entropies=array("f", [random.uniform(0, 4) for _ in range(length)]),
    )
