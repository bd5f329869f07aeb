"""Cuts the snippet of a text that fits a query best: the window with the most words of the query.

Knows words. Refuses to know indexes.
"""

import re
from collections.abc import Collection

from arpo.answer_text import HAN, IS_HAN
from arpo.search.words import words

TOKEN = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
CUT = "…"


def snippet(text: str, query: str, chars: int) -> str:
    """At most `chars` characters of `text`: the earliest window with the most different words of `query`.

    The window consists of whole words; `…` marks omitted text. A shorter text is returned unchanged.
    """
    if len(text) <= chars:
        return text
    query_words = frozenset(words(query))
    spans = [match.span() for match in TOKEN.finditer(text)]
    hits = [
        (at, word)
        for at, (start, end) in enumerate(spans)
        for word in _words_at(text, start, end)
        if word in query_words
    ]
    room = max(chars - 2 * len(CUT), 1)
    first, last = _best_window(spans, hits, room) if hits else (0, 0)
    # a hit reads better with some words before it: the window grows left by a fifth of the free room, then right
    free = room - (spans[last][1] - spans[first][0])
    while first > 0 and spans[last][1] - spans[first - 1][0] <= room - free * 4 // 5:
        first -= 1
    while last + 1 < len(spans) and spans[last + 1][1] - spans[first][0] <= room:
        last += 1
    while first > 0 and spans[last][1] - spans[first - 1][0] <= room:  # the text ends before the room is used
        first -= 1
    window = text[spans[first][0] : spans[last][1]][:room]
    return f"{CUT if first else ''}{window}{CUT if spans[first][0] + len(window) < spans[-1][1] else ''}"


def _words_at(text: str, start: int, end: int) -> list[str]:
    """The words of a token. A Chinese character forms a pair with the next one, since they are matched in pairs."""
    return words(text[start : end + 1] if IS_HAN.match(text, start) else text[start:end])


def _best_window(spans: list[tuple[int, int]], hits: list[tuple[int, str]], room: int) -> tuple[int, int]:
    """The first and last token of the window of at most `room` characters with the most different words, then the most
    hits."""
    best: tuple[int, int, int, int] = (0, 0, 0, 0)
    start = 0
    for end in range(len(hits)):
        while start < end and spans[hits[end][0]][1] - spans[hits[start][0]][0] > room:
            start += 1
        inside: Collection[str] = [word for _, word in hits[start : end + 1]]
        score = (len(set(inside)), len(inside))
        if score > best[:2]:
            best = (*score, hits[start][0], hits[end][0])
    return best[2], best[3]
