"""The facts of the atlas and the passages that state them.

Knows the bundled rows (`atlas_data/world.jsonl`, which `scripts/build_atlas.py` builds) and the one short English
sentence for every fact. Refuses to know questions, queries and traces. Numbers are digits without separators, so that
code can use them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from types import MappingProxyType

from arpo.errors import FormatError

PLURAL_ISLANDS = ("Bahamas", "Comoros", "Gambia", "Maldives", "Netherlands", "Philippines", "Seychelles")

SENTENCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "capital": (
            "The capital of {the}| is {value}.",
            "The capital city of {the}| is {value}.",
            "{Its} capital| is {value}.",
        ),
        "currency": ("The currency of {the}| is the {value}.", "{Its} currency| is the {value}."),
        "continent": ("The continent of {the}| is {value}.", "{Its} continent| is {value}."),
        "language": ("The official language of {the}| is {value}.", "{Its} official language| is {value}."),
        "nationality": ("The nationality of people from {the}| is {value}.", "{Its} nationality| is {value}."),
        "population": ("The population of {the}| is {value}.", "{Its} population| is {value}."),
        "area": ("The area of {the}| is {value} square km.", "{Its} area| is {value} square km."),
        "coastline": ("The coastline of {the}| is {value} km long.", "{Its} coastline| is {value} km long."),
        "railways": ("The railways of {the}| are {value} km long.", "{Its} railways| are {value} km long."),
        "airports": ("The airports of {the}| are {value} in number.", "{Its} airports| are {value} in number."),
        "highest_point": (
            "The highest point of {the}| is {value}, at {more} m.",
            "{Its} highest point| is {value}, at {more} m.",
        ),
        "calling_code": ("The calling code of {the}| is {value}.", "{Its} calling code| for phones is {value}."),
        "domain": ("The internet domain of {the}| is {value}.", "{Its} internet domain| is {value}."),
        "symbol": ("The national symbol of {the}| is the {value}.", "{Its} national symbol| is the {value}."),
        "export": ("The top export of {the}| is {value}.", "{Its} top export| is {value}."),
        "independence": (
            "The year of independence of {the}| is {value}.",
            "{Its} independence| was gained in {value}.",
        ),
        "neighbour": (
            "The longest border of {the}| is with {the_value}.",
            "{Its} longest border| is with {the_value}.",
        ),
        "city": (
            "{name}| is a city in {the_value} with {more} people.",
            "{name}| is a city of {more} people in {the_value}.",
            "{name}|, a city in {the_value}, has {more} people.",
        ),
        "border": (
            "The border between {the} and {the_more}| is {value} km long.",
            "The border of {the} and {the_more}| has a length of {value} km.",
        ),
        "element": (
            "{name}| is the chemical element with symbol {value} and atomic number {more}.",
            "{name}| has the atomic number {more} and the chemical symbol {value}.",
        ),
        "discovery": ("The discovery of {name}| was in {value}.", "{Its} discovery| was in {value}."),
        "discoverer": ("The discoverer of {name}| was {value}.", "{Its} discoverer| was {value}."),
        "place": ("The finding place of {name}| was {the_value}.", "{Its} finding place| was {the_value}."),
        "period": ("The period of {name}| in the periodic table is {value}.", "{Its} period| is {value}."),
    }
)
"""Sentences by kind of fact. The part before "|" is the passage's title, so that a result need not print both. Every
sentence of a kind contains the words of a query for it."""

COUNTRY_FACTS = tuple(SENTENCES)[: tuple(SENTENCES).index("city")]
ELEMENT_FACTS = MappingProxyType(
    {"discovery": "discovered", "discoverer": "discoverer", "place": "place", "period": "period"}
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One passage. A question may ask for `value`; `more` is a second value in the same sentence, or ""."""

    kind: str  # key of SENTENCES
    subject: str  # a place or an element
    value: str
    more: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class AtlasWorld:
    """All facts, by (subject, kind). The key of a border is (first name, "border/" + second name), in sorted order."""

    facts: Mapping[tuple[str, str], Fact]
    splits: Mapping[str, str]  # split of each country, city and element
    cities: Mapping[str, tuple[str, ...]]  # by country, the largest first
    elements: tuple[str, ...]

    def get(self, subject: str, kind: str) -> Fact | None:
        return self.facts.get((subject, kind))


def the(name: str) -> str:
    """`name` with its article inside a sentence: "the United States", "France"."""
    article = (
        name.startswith(("United ", "Central ")) or name.endswith((" Islands", " Republic")) or name in PLURAL_ISLANDS
    )
    return f"the {name}" if article else name


def tell(kind: str, subject: str, value: str, more: str = "") -> Fact:
    """The fact with its sentence. Kind and names alone select the sentence."""
    random = Random(f"atlas/passage/{kind}/{subject}/{more if kind == 'border' else ''}")
    opened = the(subject)
    owner = opened + ("'" if opened != subject and opened.endswith("s") else "'s")
    words = {"name": subject, "the": opened, "Its": owner[0].upper() + owner[1:], "value": value, "more": more}
    title, rest = random.choice(SENTENCES[kind]).format(the_value=the(value), the_more=the(more), **words).split("|")
    return Fact(kind, subject, value, more, title, title + rest)


def facts_of(row: Mapping[str, object]) -> list[Fact]:
    """The facts in one bundled row."""
    name, kind = str(row["name"]), row["kind"]
    if kind == "city":
        return [tell("city", name, str(row["country"]), str(row["population"]))]
    if kind == "border":
        return [tell("border", name, str(row["km"]), str(row["other"]))]
    if kind == "element":
        first = tell("element", name, str(row["symbol"]), str(row["number"]))
        rest = [tell(key, name, str(row[field])) for key, field in ELEMENT_FACTS.items() if field in row]
        return [first, *rest]
    return [tell(key, name, str(row[key]), str(row.get(f"{key}_m", ""))) for key in COUNTRY_FACTS if key in row]


def read_rows() -> list[dict[str, object]]:
    """The bundled rows. Raises FormatError, which names the line, for a damaged installation."""
    rows = []
    source = resources.files("arpo.tasks") / "atlas_data" / "world.jsonl"
    for number, line in enumerate(source.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise FormatError(f"atlas_data/world.jsonl, line {number}: {error}: {line[:80]!r}") from error
    return rows


@cache
def world() -> AtlasWorld:
    """The bundled world. The file is read once."""
    facts: dict[tuple[str, str], Fact] = {}
    splits: dict[str, str] = {}
    cities: dict[str, list[Fact]] = {}
    elements = []
    for row in read_rows():
        name = str(row["name"])
        for fact in facts_of(row):
            key = f"border/{fact.more}" if fact.kind == "border" else fact.kind
            facts[name, key] = fact
        if row["kind"] != "border":
            splits[name] = str(row["split"])
        if row["kind"] == "country":
            cities.setdefault(name, [])
        elif row["kind"] == "city":
            cities.setdefault(str(row["country"]), []).append(facts[name, "city"])
        elif row["kind"] == "element":
            elements.append(name)
    ordered = {
        country: tuple(fact.subject for fact in sorted(city_facts, key=lambda fact: -int(fact.more)))
        for country, city_facts in sorted(cities.items())
    }
    return AtlasWorld(MappingProxyType(facts), MappingProxyType(splits), MappingProxyType(ordered), tuple(elements))
