"""Reads dates in answers: `June 24th, 1896.`, `24 June 1896`, `1896-06-24`, `June 2019`, `1965年8月9日`.

Knows which days and months can exist. Refuses to know calendars, and years alone, which are numbers.
"""

import re
from dataclasses import dataclass

from arpo.answer_text import FULL_WIDTH

MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
MONTH = (
    rf"(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS if name != 'september')}|sept?(?:ember)?)\.?"
)
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
    """A date. Parts that the text does not state are None."""

    year: int | None
    month: int
    day: int | None


def read_date(text: str) -> Date | None:
    """The date, if the whole of `text` is a date, else None."""
    normalized = text.translate(FULL_WIDTH).strip().rstrip(".。").strip()
    for form in DATES:
        if match := form.fullmatch(normalized):
            return _date(match)
    return None


def dates_in(text: str) -> list[Date]:
    """Every date in a text. Of overlapping dates the most complete one counts."""
    rest, dates = text.translate(FULL_WIDTH), []
    for form in DATES:
        for match in form.finditer(rest):
            if (date := _date(match)) is not None:
                dates.append(date)
        rest = form.sub(lambda match: " " * len(match[0]), rest)
    return dates


def same_date(answer: str, gold: Date) -> bool:
    """True if `answer` holds exactly one date, and it agrees with every part of `gold`. It may be more precise."""
    dates = dates_in(answer)
    if len(dates) != 1:
        return False
    pairs = ((gold.year, dates[0].year), (gold.month, dates[0].month), (gold.day, dates[0].day))
    return all(expected is None or expected == actual for expected, actual in pairs)


def _date(match: re.Match[str]) -> Date | None:
    parts = match.groupdict()
    month_text = parts["month"]
    month = int(month_text) if month_text.isdecimal() else [n[:3] for n in MONTHS].index(month_text[:3].casefold()) + 1
    day = int(parts["day"]) if parts.get("day") else None
    if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
        return None
    return Date(int(parts["year"]) if parts.get("year") else None, month, day)
