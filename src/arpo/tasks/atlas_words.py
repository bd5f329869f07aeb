"""Templates for the questions about the atlas, by kind of fact.

Knows only the wording. `atlas_questions` knows the subjects and the answers.
"""

from collections.abc import Mapping
from types import MappingProxyType

ASK: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "capital": ("What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}."),
        "currency": ("What is the currency of {x}?", "Which currency is used in {x}?", "Name the currency of {x}."),
        "continent": (
            "On which continent is {x}?",
            "Name the continent of {x}.",
            "Which continent does {x} belong to?",
        ),
        "language": ("What is the official language of {x}?", "Which language is official in {x}?"),
        "nationality": ("What is the nationality of people from {x}?", "Which nationality do people from {x} have?"),
        "population": ("What is the population of {x}?", "How large is the population of {x}?"),
        "area": ("What is the area of {x} in square km?", "How many square km is the area of {x}?"),
        "coastline": ("How many km long is the coastline of {x}?", "What is the length in km of the coastline of {x}?"),
        "railways": ("How many km of railways are in {x}?", "How long in km are the railways of {x}?"),
        "airports": ("How many airports are there in {x}?", "What is the number of airports in {x}?"),
        "highest_point": (
            "What is the highest point of {x}?",
            "Name the highest point of {x}.",
            "Which is the highest point in {x}?",
        ),
        "calling_code": ("What is the calling code of {x}?", "Which calling code do phone numbers in {x} have?"),
        "domain": ("What is the internet domain of {x}?", "Which internet domain do sites in {x} use?"),
        "symbol": ("What is the national symbol of {x}?", "Name the national symbol of {x}."),
        "export": (
            "What is the top export of {x}?",
            "Name the top export of {x}.",
            "Which good is the top export of {x}?",
        ),
        "independence": ("In which year did {x} gain independence?", "What is the year of independence of {x}?"),
        "neighbour": (
            "With which country does {x} share its longest border?",
            "Which country is on the longest border of {x}?",
        ),
        "city": (
            "In which country is the city of {x}?",
            "Which country is {x} a city in?",
            "In what country does {x} lie?",
        ),
        "people": (
            "How many people live in {x}?",
            "How many people does {x} have?",
            "What is the number of people in {x}?",
        ),
        "element": ("What is the chemical symbol of {x}?", "Which symbol does the element {x} have?"),
        "number": ("What is the atomic number of {x}?", "Which atomic number does the element {x} have?"),
        "discovery": ("In which year was {x} discovered?", "What is the year of the discovery of {x}?"),
        "discoverer": ("Who discovered {x}?", "Who was the discoverer of {x}?"),
        "place": (
            "Where was {x} found?",
            "What is the finding place of {x}?",
            "In which country was the element {x} found?",
        ),
        "period": ("In which period is {x}?", "Which period of the periodic table is {x} in?"),
    }
)

WANTED = MappingProxyType(
    {
        "city": "",
        "people": "people",
        "element": "symbol",
        "number": "atomic number",
        "place": "finding place",
        "neighbour": "longest border",
    }
)

HOME = (
    "the country where {city} lies",
    "the country that {city} is in",
    "the country with the city of {city}",
    "the home country of {city}",
)
FOUND = ("the country where {element} was found", "the finding place of {element}")

# kind of fact -> (questions for the larger value, questions for the smaller value)
COMPARE: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "people": (
            ("Which city has more people, {x}?", "Where do more people live, in {x}?"),
            ("Which city has fewer people, {x}?",),
        ),
        "population": (
            ("Which has the larger population, {x}?", "Which country has more people, {x}?"),
            ("Which has the smaller population, {x}?",),
        ),
        "area": (
            ("Which covers the larger area, {x}?", "Which country has more area, {x}?"),
            ("Which has the smaller area, {x}?",),
        ),
        "coastline": (("Which has the longer coastline, {x}?",), ("Which has the shorter coastline, {x}?",)),
        "railways": (("Which has more km of railways, {x}?",), ("Which has fewer km of railways, {x}?",)),
        "airports": (
            ("Which has more airports, {x}?", "Where are more airports, in {x}?"),
            ("Which has fewer airports, {x}?",),
        ),
        "highest_point": (("Which has the higher highest point, {x}?",), ("Which has the lower highest point, {x}?",)),
        "independence": (("Which gained independence later, {x}?",), ("Which gained independence first, {x}?",)),
        "discovery": (("Which element was discovered later, {x}?",), ("Which element was discovered first, {x}?",)),
        "number": (
            ("Which element has the larger atomic number, {x}?",),
            ("Which element has the smaller atomic number, {x}?",),
        ),
    }
)
SUPERLATIVE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "people": (
            "Which of these cities has the most people: {x}?",
            "Which of these cities has the fewest people: {x}?",
        ),
        "population": ("Which has the largest population: {x}?", "Which has the smallest population: {x}?"),
        "area": ("Which covers the largest area: {x}?", "Which covers the smallest area: {x}?"),
        "coastline": ("Which has the longest coastline: {x}?", "Which has the shortest coastline: {x}?"),
        "railways": ("Which has the most railways: {x}?", "Which has the fewest railways: {x}?"),
        "airports": ("Which has the most airports: {x}?", "Which has the fewest airports: {x}?"),
        "discovery": (
            "Which of these elements was discovered last: {x}?",
            "Which of these elements was discovered first: {x}?",
        ),
        "number": (
            "Which element has the largest atomic number: {x}?",
            "Which element has the smallest atomic number: {x}?",
        ),
    }
)
DIFFERENCE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "people": ("How many more people live in {a} than in {b}?", "By how many people is {a} larger than {b}?"),
        "coastline": ("By how many km is the coastline of {a} longer than that of {b}?",),
        "railways": ("How many more km of railways has {a} than {b}?",),
        "airports": ("How many more airports has {a} than {b}?", "How many airports more than {b} are there in {a}?"),
        "highest_point": ("By how many m is the highest point of {a} above that of {b}?",),
        "independence": ("How many years after {b} did {a} gain independence?",),
        "discovery": (
            "How many years after {b} was {a} discovered?",
            "How many years lie between the discovery of {b} and of {a}?",
        ),
        "number": ("By how much is the atomic number of {a} larger than that of {b}?",),
    }
)
SUM: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "people": (
            "How many people live in {a} and {b} together?",
            "What is the total number of people in {a} and {b}?",
        ),
        "coastline": ("How many km of coastline do {a} and {b} have together?",),
        "airports": (
            "How many airports do {a} and {b} have together?",
            "What is the total number of airports in {a} and {b}?",
        ),
        "number": ("What is the sum of the atomic numbers of {a} and {b}?",),
    }
)
DENSITY = (
    "How many people live on a square km in {x}, rounded?",
    "What is the population of {x} divided by its area, rounded?",
    "What is the population density of {x} per square km, rounded?",
)
BORDERS = (
    "How many km are the borders of {x} with {a} and {b} together?",
    "What is the total length in km of the borders of {x} with {a} and with {b}?",
)


def wanted(kind: str) -> str:
    """The words that a query for a fact of this kind uses besides the name."""
    return WANTED.get(kind, kind.replace("_", " "))
