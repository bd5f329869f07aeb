"""The oracle of the atlas solves a question with `search` and `python`, in varied words.

Knows thoughts, queries and code. Refuses to know tools: the real tools give the results when a trace is used. The task
and a seed key every choice of words.
"""

from random import Random

from arpo.core.tree import Call
from arpo.tasks import Task
from arpo.tasks.atlas_questions import AtlasQuestion, Lookup
from arpo.tasks.traces import RecordedStep, Trace

THINK_FIRST = 0.55  # share of first steps with a thought
THINK_LATER = 0.4
SPLIT = 0.2  # share of lookups of two passages that become two searches

NAME_ONLY = ("{name}", "{name} country", "{name} city", "city of {name}")
SINGLE = ("{name} {wanted}", "{wanted} of {name}", "{name} {wanted}")
PAIR = ("{names} {wanted}", "{wanted} of {listed}", "{names} {wanted}")
PAIR_ONLY = ("{names}", "{listed}", "{names} city")
SEEK_HOME = ("Where is {name}?", "I need the country of {name}.", "First find where {name} is.")
SEEK = ("Find the {wanted} of {name}.", "I need the {wanted} of {name}.", "Look up the {wanted} of {name}.")
SEEK_NEXT = ("Now the {wanted} of {name}.", "Next, the {wanted} of {name}.")
SEEK_BORDER = ("Find the border of {a} and {b}.", "How long is that border?")
SEEK_BOTH = ("Look them up together.", "I need the {wanted} of each.", "Compare the {wanted}.")
COMPUTE = ("Now compute it.", "Calculate.", "Compute this with Python.")
CONCLUDE = ("Now I can answer.", "That is the answer.", "The result answers it.")


def names_of(lookup: Lookup) -> tuple[str, ...]:
    """The names in a query for these passages, without repetition."""
    names = [
        name
        for fact in lookup.facts
        for name in ((fact.subject, fact.more) if fact.kind == "border" else (fact.subject,))
    ]
    return tuple(dict.fromkeys(names))


def query(lookup: Lookup, random: Random) -> str:
    """A query that finds the passages of `lookup`."""
    names = names_of(lookup)
    if len(names) == 1:
        return random.choice(SINGLE if lookup.wanted else NAME_ONLY).format(name=names[0], wanted=lookup.wanted)
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return random.choice(PAIR if lookup.wanted else PAIR_ONLY).format(
        names=" ".join(names), listed=listed, wanted=lookup.wanted
    )


def thought(lookup: Lookup, first: bool, random: Random) -> str:
    """The thought before a search, or ""."""
    if random.random() > (THINK_FIRST if first else THINK_LATER):
        return ""
    names = names_of(lookup)
    words: tuple[str, ...]
    if lookup.facts[0].kind == "border":
        return random.choice(SEEK_BORDER).format(a=names[0], b=names[1])
    if len(names) > 1:
        words = SEEK_BOTH if lookup.wanted else SEEK_BOTH[:1]
    elif not lookup.wanted:
        words = SEEK_HOME
    else:
        words = SEEK if first else SEEK_NEXT
    return random.choice(words).format(name=names[0], wanted=lookup.wanted)


def searches(question: AtlasQuestion, random: Random) -> list[Lookup]:
    """The searches for a question's lookups: a pair is sometimes split in two, and the two facts of a density then use
    their own words."""
    lookups: list[Lookup] = []
    for lookup in question.lookups:
        if len(lookup.facts) == 2 and len(question.lookups) == 1 and random.random() < SPLIT:
            same = len({fact.subject for fact in lookup.facts}) == 1
            lookups.extend(Lookup((fact,), fact.kind if same else lookup.wanted) for fact in lookup.facts)
        else:
            lookups.append(lookup)
    return lookups


def solve(task: Task, question: AtlasQuestion, seed: int) -> Trace:
    """The oracle's trace for a task."""
    random = Random(f"atlas/trace/{task.id}/{seed}")
    steps = []
    for number, lookup in enumerate(searches(question, random)):
        call = Call(name="search", arguments={"query": query(lookup, random)})
        steps.append(RecordedStep(thought(lookup, number == 0, random), (call,)))
    if question.code:
        words = random.choice(COMPUTE) if random.random() < THINK_LATER else ""
        steps.append(RecordedStep(words, (Call(name="python", arguments={"code": question.code}),)))
    words = random.choice(CONCLUDE) if random.random() < THINK_LATER / 2 else ""
    steps.append(RecordedStep(words, answer=question.answer))
    return Trace(task, tuple(steps))
