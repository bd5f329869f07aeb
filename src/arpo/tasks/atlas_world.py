"""The facts of the atlas and the passages that tell them.

Knows the bundled rows (`atlas_data/world.jsonl`, made by `scripts/build_atlas.py`) and how each fact reads as one short English
sentence. Refuses to know questions, queries and traces. Numbers stand as plain digits, so that they can be copied into code.
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
        "capital": ("The capital of {the} is {value}.", "{value} is the capital of {the}."),
        "currency": ("The currency of {the} is the {value}.", "In {the}, the currency is the {value}."),
        "continent": ("{The} lies on the continent of {value}.", "The continent of {the} is {value}."),
        "language": ("The official language of {the} is {value}.", "{value} is the official language of {the}."),
        "nationality": ("The nationality of people from {the} is {value}.", "In {the}, the nationality is {value}."),
        "population": ("The population of {the} is {value}.", "{The} has a population of {value}."),
        "area": ("The area of {the} is {value} square km.", "{The} covers an area of {value} square km."),
        "coastline": ("The coastline of {the} is {value} km long.", "{The} has a coastline of {value} km."),
        "railways": ("The railways of {the} are {value} km long.", "{The} has {value} km of railways."),
        "airports": ("The number of airports in {the} is {value}.", "{The} has {value} airports."),
        "highest_point": (
            "The highest point of {the} is {value}, at {more} m.",
            "{value}, at {more} m, is the highest point of {the}.",
        ),
        "calling_code": ("The calling code of {the} is {value}.", "Phone numbers in {the} have the calling code {value}."),
        "domain": ("The internet domain of {the} is {value}.", "Internet sites in {the} use the domain {value}."),
        "symbol": ("The national symbol of {the} is the {value}.", "{The} has the {value} as its national symbol."),
        "export": ("The top export of {the} is {value}.", "{The} earns most from its top export, {value}."),
        "independence": ("{The} gained independence in {value}.", "The year of independence of {the} is {value}."),
        "neighbour": ("{The} shares its longest border with {the_value}.", "The longest border of {the} is with {the_value}."),
        "city": (
            "{name} is a city in {the_value} with {more} people.",
            "The city of {name} in {the_value} has {more} people.",
            "{name}, a city of {more} people, lies in {the_value}.",
        ),
        "border": (
            "The border between {the} and {the_more} is {value} km long.",
            "{The} and {the_more} share a border of {value} km.",
        ),
        "element": (
            "{name} is the chemical element with symbol {value} and atomic number {more}.",
            "The element {name} has atomic number {more} and the symbol {value}.",
        ),
        "discovery": ("The discovery of {name} was in {value}.", "The year of the discovery of {name} is {value}."),
        "discoverer": ("The discoverer of {name} was {value}.", "{value} was the discoverer of {name}."),
        "place": (
            "The place of the discovery of {name} was {the_value}.",
            "{name} was first found in {the_value}, the place of its discovery.",
        ),
        "period": ("{name} stands in period {value} of the periodic table.", "The period of {name} is {value}."),
    }
)
"""Sentences by kind of fact. Every sentence of a kind holds the words that a query for it would use."""

COUNTRY_FACTS = tuple(SENTENCES)[: tuple(SENTENCES).index("city")]
ELEMENT_FACTS = MappingProxyType({"discovery": "discovered", "discoverer": "discoverer", "place": "place", "period": "period"})


@dataclass(frozen=True, slots=True)
class Fact:
    """One passage. `value` is what a question may ask for; `more` a second value in the same sentence ("" without)."""

    kind: str  # key of SENTENCES
    subject: str  # place or element it tells of
    value: str
    more: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class World:
    """All facts. `facts` by (subject, kind); a border stands under (smaller name, "border/" + other name)."""

    facts: Mapping[tuple[str, str], Fact]
    splits: Mapping[str, str]  # split of each country, city and element
    cities: Mapping[str, tuple[str, ...]]  # of each country, most people first
    elements: tuple[str, ...]

    def get(self, subject: str, kind: str) -> Fact | None:
        return self.facts.get((subject, kind))


def the(name: str) -> str:
    """`name` with its article inside a sentence: "the United States", "France"."""
    article = name.startswith(("United ", "Central ")) or name.endswith((" Islands", " Republic")) or name in PLURAL_ISLANDS
    return f"the {name}" if article else name


def tell(kind: str, title: str, subject: str, value: str, more: str = "") -> Fact:
    """The fact with its sentence; which of the sentences depends on the title alone."""
    opened = the(subject)
    plural = opened != subject and subject.endswith("s") and not subject.startswith("United ")
    fitting = [each for each in SENTENCES[kind] if not (plural and each.startswith("{The} ")) or kind == "border"]
    sentence = Random(f"atlas/passage/{title}").choice(fitting)
    names = {"name": subject, "the": opened, "The": opened[0].upper() + opened[1:]}
    text = sentence.format(value=value, more=more, the_value=the(value), the_more=the(more), **names)
    return Fact(kind, subject, value, more, title, text[0].upper() + text[1:])


def facts_of(row: Mapping[str, object]) -> list[Fact]:
    """Facts of one bundled row."""
    name, kind = str(row["name"]), row["kind"]
    if kind == "city":
        return [tell("city", name, name, str(row["country"]), str(row["population"]))]
    if kind == "border":
        return [tell("border", f"{name} and {row['other']}: border", name, str(row["km"]), str(row["other"]))]
    if kind == "element":
        first = tell("element", f"{name}: element", name, str(row["symbol"]), str(row["number"]))
        rest = [tell(key, f"{name}: {key}", name, str(row[field])) for key, field in ELEMENT_FACTS.items() if field in row]
        return [first, *rest]
    return [
        tell(key, f"{name}: {key.replace('_', ' ')}", name, str(row[key]), str(row.get(f"{key}_m", "")))
        for key in COUNTRY_FACTS
        if key in row
    ]


def read_rows() -> list[dict[str, object]]:
    """The bundled rows. Raises FormatError naming the line that cannot be read (a damaged installation)."""
    rows = []
    source = resources.files("arpo.tasks") / "atlas_data" / "world.jsonl"
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise FormatError(f"atlas_data/world.jsonl, line {number}: {error}: {line[:80]!r}") from error
    return rows


@cache
def world() -> World:
    """The bundled world, read once."""
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
        country: tuple(fact.subject for fact in sorted(found, key=lambda fact: -int(fact.more)))
        for country, found in sorted(cities.items())
    }
    return World(MappingProxyType(facts), MappingProxyType(splits), MappingProxyType(ordered), tuple(elements))
