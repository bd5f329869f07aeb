"""Questions about the atlas, with their answers and the passages that hold the facts.

Knows families, templates and the facts that a question needs. Refuses to know how to write a trace (`atlas_oracle`) and
how to mix tasks (`atlas`). Every entity of a question (its subject, intermediate steps and answer) belongs to one
split.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from random import Random
from types import MappingProxyType

from arpo.tasks.atlas_words import ASK, BORDERS, COMPARE, DENSITY, DIFFERENCE, FOUND, HOME, SUM, SUPERLATIVE, wanted
from arpo.tasks.atlas_world import COUNTRY_FACTS, AtlasWorld, Fact, the

MAX_DIGITS = 6  # of a number that is the answer
MAX_LETTERS = 18  # of a name that is the answer
CLEAR = 1.1  # a question compares two values only if the larger is at least this many times the smaller


@dataclass(frozen=True, slots=True)
class Lookup:
    """One search: the passages to find, and the words for the requested fact ("" if the name is enough)."""

    facts: tuple[Fact, ...]
    wanted: str


@dataclass(frozen=True, slots=True)
class AtlasQuestion:
    """A question with the oracle's solution: lookups in order, then code ("" if there is nothing to compute)."""

    family: str
    text: str
    answer: str
    hops: int
    lookups: tuple[Lookup, ...]
    code: str = ""
    on_the_way: tuple[str, ...] = ()  # subjects, and the entities between them and the answer


ELEMENT_KINDS = ("element", "number", "discovery", "discoverer", "place", "period")


class Quiz:
    """Draws questions of one split from a world. All methods are pure functions of (world, split, random)."""

    def __init__(self, world: AtlasWorld, split: str) -> None:
        self.world, self.split = world, split
        self.countries = tuple(name for name in world.cities if world.splits.get(name) == split)
        self.towns = {name: tuple(t for t in world.cities[name] if name not in t) for name in self.countries}
        self.cities = tuple(town for name in self.countries for town in self.towns[name])
        self.elements = tuple(name for name in world.elements if world.splits.get(name) == split)

    # facts

    def fact(self, subject: str, kind: str) -> Fact | None:
        return self.world.get(subject, {"people": "city", "number": "element"}.get(kind, kind))

    def value(self, subject: str, kind: str) -> str:
        """The answer to a question of this kind, "" if it is unknown or belongs to another split."""
        fact = self.fact(subject, kind)
        if fact is None:
            return ""
        value = fact.more if kind in ("people", "number") else fact.value
        default = "" if kind == "place" else self.split  # "England" belongs to no split, so it is never an answer
        return value if self.world.splits.get(value, default) == self.split else ""

    def measure(self, subject: str, kind: str) -> int | None:
        """The number that a comparison of this kind compares."""
        fact = self.fact(subject, kind)
        if fact is None:
            return None
        text = fact.more if kind in ("people", "number", "highest_point") else fact.value
        return int(text) if text.isdecimal() else None

    def pool(self, kind: str) -> tuple[str, ...]:
        """The entities that a comparison of this kind may use: only one-word names, so that one search finds them
        all."""
        pool = self.cities if kind == "people" else self.elements if kind in ELEMENT_KINDS else self.countries
        return tuple(name for name in pool if name.isalpha())

    def lookup(self, kind: str, *subjects: str) -> Lookup:
        facts = tuple(fact for subject in subjects if (fact := self.fact(subject, kind)) is not None)
        return Lookup(facts, wanted(kind))

    # families

    def one_hop(self, random: Random) -> AtlasQuestion | None:
        kind = random.choice((*COUNTRY_FACTS, *ELEMENT_KINDS, *("city", "people") * 5))
        pool = self.cities if kind in ("city", "people") else self.elements if kind in ELEMENT_KINDS else self.countries
        subject = random.choice(pool)
        kind = "discovery" if kind in ("discoverer", "place") and not self.value(subject, kind) else kind
        answer = self.value(subject, kind)
        if not fits(answer):
            return None
        text = random.choice(ASK[kind]).format(x=the(subject))
        return AtlasQuestion("one_hop", text, answer, 1, (self.lookup(kind, subject),), on_the_way=(subject,))

    def home(self, random: Random) -> tuple[str, str, str, Lookup] | None:
        """A country that the first search has to find: (country, its description, the entity in the description, the
        lookup)."""
        if random.random() < 0.1:
            element = random.choice(self.elements)
            country = self.value(element, "place")
            if country not in self.countries:
                return None
            return country, random.choice(FOUND).format(element=element), element, self.lookup("place", element)
        city = random.choice(self.towns[country]) if self.towns[country := random.choice(self.countries)] else ""
        return (country, random.choice(HOME).format(city=city), city, self.lookup("city", city)) if city else None

    def two_hop(self, random: Random) -> AtlasQuestion | None:
        start = self.home(random)
        if start is None:
            return None
        country, described, subject, first = start
        kind = random.choice([kind for kind in COUNTRY_FACTS if kind not in ("population", "area")])
        answer = self.value(country, kind)
        if not fits(answer) or answer in (subject, country):
            return None
        text = random.choice(ASK[kind]).format(x=described)
        return AtlasQuestion(
            "two_hop", text, answer, 2, (first, self.lookup(kind, country)), on_the_way=(subject, country)
        )

    def three_hop(self, random: Random) -> AtlasQuestion | None:
        start = self.home(random)
        if start is None:
            return None
        country, described, subject, first = start
        through, kind = random.choice((("capital", "people"), ("neighbour", "")))
        middle = self.value(country, through)
        kind = kind or random.choice(("capital", "currency", "calling_code", "domain", "export", "airports"))
        answer = self.value(middle, kind) if middle else ""
        if not fits(answer) or answer in (subject, country) or middle == subject:
            return None
        towards = (
            f"the capital of {described}"
            if through == "capital"
            else f"the country on the longest border of {described}"
        )
        text = random.choice(ASK[kind]).format(x=towards)
        lookups = (first, self.lookup(through, country), self.lookup(kind, middle))
        return AtlasQuestion("three_hop", text, answer, 3, lookups, on_the_way=(subject, country, middle))

    def several(
        self, random: Random, kinds: Mapping[str, object], count: int
    ) -> tuple[str, list[tuple[int, str]]] | None:
        """A kind and `count` subjects with clearly different numbers, largest first."""
        kind = random.choice([*kinds, *(["people"] * 2)])
        sample = random.sample(self.pool(kind), count)
        ranked = sorted(((n, name) for name in sample if (n := self.measure(name, kind)) is not None), reverse=True)
        if any(
            self.world.get(min(pair), f"border/{max(pair)}") for pair in combinations((name for _, name in ranked), 2)
        ):
            return None  # a search for two neighbours finds their border instead
        years = kind in ("independence", "discovery")
        clear = all(a - b >= 3 if years else a >= CLEAR * b for (a, _), (b, _) in pairwise(ranked))
        return (kind, ranked) if len(ranked) == count and clear else None

    def comparison(self, random: Random) -> AtlasQuestion | None:
        pair = self.several(random, COMPARE, 2)
        if pair is None:
            return None
        kind, ((_, large), (_, small)) = pair
        more = random.random() < 0.65
        order = [large, small]
        random.shuffle(order)
        text = random.choice(COMPARE[kind][0 if more else 1]).format(x=" or ".join(the(name) for name in order))
        answer = large if more else small
        if random.random() < 0.25 and kind not in ("people", *ELEMENT_KINDS):
            return self.homes_compared(random, kind, order, answer, more)
        return AtlasQuestion("comparison", text, answer, 1, (self.lookup(kind, *order),), on_the_way=tuple(order))

    def homes_compared(
        self, random: Random, kind: str, order: list[str], answer: str, more: bool
    ) -> AtlasQuestion | None:
        """A comparison of the countries of two cities: two hops."""
        if not all(self.towns[name] for name in order):
            return None
        towns = [random.choice(self.towns[name]) for name in order]
        described = " or the one with ".join(("the country with " + towns[0], towns[1]))
        text = random.choice(COMPARE[kind][0 if more else 1]).format(x=described)
        lookups = (self.lookup("city", *towns), self.lookup(kind, *order))
        return AtlasQuestion("comparison", text, answer, 2, lookups, on_the_way=(*towns, *order))

    def superlative(self, random: Random) -> AtlasQuestion | None:
        three = self.several(random, SUPERLATIVE, 3)
        if three is None:
            return None
        kind, ranked = three
        most = random.random() < 0.65
        order = [name for _, name in ranked]
        random.shuffle(order)
        a, b, c = (the(name) for name in order)
        text = SUPERLATIVE[kind][0 if most else 1].format(x=f"{a}, {b} or {c}")
        answer = ranked[0 if most else -1][1]
        return AtlasQuestion("superlative", text, answer, 1, (self.lookup(kind, *order),), on_the_way=tuple(order))

    def arithmetic(self, random: Random) -> AtlasQuestion | None:
        shape = random.choice(("difference", "difference", "sum", "density", "border"))
        if shape == "density":
            return self.density(random)
        if shape == "border":
            return self.border_sum(random)
        kinds = DIFFERENCE if shape == "difference" else SUM
        pair = self.several(random, kinds, 2)
        if pair is None:
            return None
        kind, ((larger, a), (smaller, b)) = pair
        if shape == "sum" and random.random() < 0.5:
            a, b, larger, smaller = b, a, smaller, larger
        result = larger - smaller if shape == "difference" else larger + smaller
        code = f"print({larger}{'-' if shape == 'difference' else '+'}{smaller})"
        if not fits(str(result)) or len(code) > 24:
            return None
        text = random.choice(kinds[kind]).format(a=the(a), b=the(b))
        return AtlasQuestion("arithmetic", text, str(result), 1, (self.lookup(kind, a, b),), code, (a, b))

    def density(self, random: Random) -> AtlasQuestion | None:
        country = random.choice(self.countries)
        population, area = self.measure(country, "population"), self.measure(country, "area")
        if not population or not area or population < 2 * area:
            return None
        both = Lookup(
            (*self.lookup("population", country).facts, *self.lookup("area", country).facts), "population area"
        )
        code = f"print(round({population}/{area}))"
        if len(code) > 25 or 2 * population % area == 0:
            return None
        text = random.choice(DENSITY).format(x=the(country))
        return AtlasQuestion("arithmetic", text, str(round(population / area)), 1, (both,), code, (country,))

    def border_sum(self, random: Random) -> AtlasQuestion | None:
        """The sum of the lengths of two borders of one country."""
        country = random.choice(self.countries)
        lines = [
            line
            for line in self.borders(country)
            if all(self.world.splits[end] == self.split for end in (line.subject, line.more))
        ]
        if len(lines) < 2:
            return None
        first, second = random.choice(list(combinations(lines, 2)))
        others = [line.more if line.subject == country else line.subject for line in (first, second)]
        text = random.choice(BORDERS).format(x=the(country), a=the(others[0]), b=the(others[1]))
        answer = str(int(first.value) + int(second.value))
        lookups = tuple(Lookup((line,), "border") for line in (first, second))
        code = f"print({first.value}+{second.value})"
        return AtlasQuestion("arithmetic", text, answer, 1, lookups, code, (country, *others))

    def borders(self, country: str) -> Iterator[Fact]:
        for (subject, key), fact in self.world.facts.items():
            if key.startswith("border/") and country in (subject, fact.more):
                yield fact


FAMILIES: Mapping[str, Callable[[Quiz, Random], AtlasQuestion | None]] = MappingProxyType(
    {
        "one_hop": Quiz.one_hop,
        "two_hop": Quiz.two_hop,
        "three_hop": Quiz.three_hop,
        "comparison": Quiz.comparison,
        "arithmetic": Quiz.arithmetic,
        "superlative": Quiz.superlative,
    }
)


def fits(answer: str) -> bool:
    """True if an answer is known and short enough for a small model to copy."""
    return 0 < len(answer) <= (MAX_DIGITS if answer.isdecimal() else MAX_LETTERS)


def draw(world: AtlasWorld, split: str, family: str, count: int, random: Random) -> list[AtlasQuestion]:
    """Up to `count` different questions of a family (fewer if the split holds no more)."""
    quiz = Quiz(world, split)
    questions: dict[str, AtlasQuestion] = {}
    for _ in range(40 * count):
        question = FAMILIES[family](quiz, random)
        if question is not None:
            questions.setdefault(question.text, question)
        if len(questions) == count:
            break
    return list(questions.values())
