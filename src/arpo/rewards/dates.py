"""Dates as answers hold them: `June 24th, 1896.`, `24 June 1896`, `1896-06-24`, `June 2019`, `1965年8月9日`.

Refuses to know calendars beyond whether a day and a month can exist, and years alone, which are numbers.
"""

import re
from dataclasses import dataclass

from arpo.answer_text import FULL_WIDTH

MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
MONTH = rf"(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS if name != 'september')}|sept?(?:ember)?)\.?"
DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
YEAR = r"(?P<year>\d{4})"
FORMS = (
    rf"\b{MONTH}\s+(?:the\s+)?{DAY}(?:\s*,\s*|\s+(?:of\s+)?){YEAR}\b",
    rf"\b{DAY}\s+(?:of\s+)?{MONTH},?\s+{YEAR}\b",
    rf"\b{YEAR}[-/.](?P<month>\d{{1,2}})[-/.]{DAY}\b",
    rf"{YEAR}\s*年\s*(?P<month>\d{{1,2}})\s*月(?:\s*(?P<day>\d{{1,2}})\s*[日号])?",
    rf"\b{MONTH},?\s+(?:of\s+)?{YEAR}\b",
    r"(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]",
    rf"\b{MONTH}\s+(?:the\s+)?{DAY}\b",
    rf"\b{DAY}\s+(?:of\s+)?{MONTH}\b",
)
DATES = tuple(re.compile(form, re.IGNORECASE) for form in FORMS)


@dataclass(frozen=True, slots=True)
class Date:
    """Parts that are not said are None."""

    year: int | None
    month: int
    day: int | None


def read_date(text: str) -> Date | None:
    """The date that `text` is as a whole, else None."""
    plain = text.translate(FULL_WIDTH).strip().rstrip(".。").strip()
    for form in DATES:
        if found := form.fullmatch(plain):
            return _date(found)
    return None


def dates_in(text: str) -> list[Date]:
    """Every date in a text, the most complete reading of each place."""
    rest, found = text.translate(FULL_WIDTH), []
    for form in DATES:
        for match in form.finditer(rest):
            if (date := _date(match)) is not None:
                found.append(date)
        rest = form.sub(lambda match: " " * len(match[0]), rest)
    return found


def same_date(answer: str, gold: Date) -> bool:
    """Whether `answer` holds one date and it says all that `gold` says; it may be more exact."""
    found = dates_in(answer)
    return len(found) == 1 and all(
        wanted is None or wanted == given
        for wanted, given in zip((gold.year, gold.month, gold.day), (found[0].year, found[0].month, found[0].day), strict=True)
    )


def _date(found: re.Match[str]) -> Date | None:
    parts = found.groupdict()
    named = parts["month"]
    month = int(named) if named.isdigit() else [name[:3] for name in MONTHS].index(named[:3].casefold()) + 1
    day = int(parts["day"]) if parts.get("day") else None
    if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
        return None
    return Date(int(parts["year"]) if parts.get("year") else None, month, day)
