"""Passages, the pieces of text that a search finds, and the function that cuts a long text into passages.

Knows the keys under which corpora keep their text. Refuses to know files and how to search passages.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arpo.errors import FormatError

TEXT_KEYS = ("text", "contents", "content", "passage", "body")
SOURCE_KEYS = ("source", "url", "link")
PASSAGE_CHARS = 1_000  # target length when a text is cut
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class Passage:
    title: str
    text: str
    source: str = ""  # a path in a folder, a URL, or a page of a PDF


def passage_from(document: Any, where: str) -> Passage:
    """The passage in an object of a corpus: `text` (or `contents`, ...), and optionally `title`, and `source` or `url`.

    Raises FormatError, which names `where`, for anything else.
    """
    if not isinstance(document, Mapping):
        raise FormatError(
            f"{where}: a document must be an object with `text` and optionally `title`, not {document!r:.80}"
        )
    text = next((document[key] for key in TEXT_KEYS if isinstance(document.get(key), str)), None)
    if text is None:
        keys = ", ".join(
            f"{key} ({'null' if value is None else type(value).__name__})" for key, value in document.items()
        )
        raise FormatError(f"{where}: a document needs a text under the key `text`; this one has {keys or 'nothing'}")
    title = str(document.get("title") or "")
    source = next((str(document[key]) for key in SOURCE_KEYS if document.get(key)), "")
    first, _, rest = text.partition("\n")
    if (
        not title and rest and first.startswith('"') and first.endswith('"')
    ):  # "Title"\ntext, the form of retrieval corpora
        title, text = first.strip('"'), rest
    return Passage(_as_text(_on_one_line(title)), _as_text(_on_one_line(text)), _as_text(source))


def from_mappings(documents: Iterable[Any], where: str) -> list[Passage]:
    return [passage_from(document, f"{where}[{number}]") for number, document in enumerate(documents)]


def cut(text: str, paragraphs: str = "\n\n", chars: int = PASSAGE_CHARS) -> list[str]:
    """`text` in pieces of about `chars` characters. It joins whole paragraphs, and cuts longer ones between sentences,
    else between words."""
    pieces: list[str] = []
    for paragraph in filter(None, map(_on_one_line, text.split(paragraphs))):
        for part in _shortened(paragraph, chars):
            if pieces and len(pieces[-1]) + len(part) < chars:
                pieces[-1] += " " + part
            else:
                pieces.append(part)
    return pieces


def _shortened(paragraph: str, chars: int) -> Iterator[str]:
    if len(paragraph) <= chars:
        yield paragraph
        return
    line = ""
    for sentence in SENTENCE_END.split(paragraph):
        for part in [sentence] if len(sentence) <= chars else sentence.split(" "):
            if line and len(line) + len(part) >= chars:
                yield line
                line = part
            else:
                line = f"{line} {part}" if line else part
    if line:
        yield line


def _as_text(text: str) -> str:
    """`text` with `?` for lone surrogates, which JSON can hold but UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
