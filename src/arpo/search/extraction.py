"""The readable text of a web page or a PDF. Needs the extra `web` (trafilatura, pypdf).

Knows bytes and text. Refuses to know where they come from.
"""

import io
import logging
import math
import time
from dataclasses import dataclass

import pypdf
import trafilatura
from trafilatura.settings import Document

from arpo.errors import FormatError

MOST_PAGES = 200  # of a PDF: enough for a book's worth of answers, and a limit on work


@dataclass(frozen=True, slots=True)
class Extracted:
    title: str
    pages: tuple[str, ...]  # one for a web page; of a PDF those that hold text or not, in order

    @property
    def text(self) -> str:
        return "\n\n".join(page for page in self.pages if page)


def html_to_text(content: bytes | str) -> Extracted:
    """The main text of a page without its menus, tables included, a paragraph a line. Empty where there is none."""
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it warns of every empty page; emptiness is an answer here
    found = trafilatura.bare_extraction(content, include_comments=False, include_tables=True, with_metadata=True)
    if not isinstance(found, Document):
        return Extracted("", ())
    return Extracted(" ".join((found.title or "").split()), (found.text or "",))


def pdf_to_text(content: bytes, *, cpu_s: float = math.inf) -> Extracted:
    """The text of a PDF's first MOST_PAGES pages. Raises FormatError for what is no PDF, damaged or locked, or takes this thread
    longer than `cpu_s` seconds of processor time: a file of two kilobytes may unpack to a day's work."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of each blemish that it got over
    until = time.thread_time() + cpu_s

    def go_on(*_: object) -> None:
        if time.thread_time() > until:
            raise TimeoutError(f"more than {cpu_s:g} s of work")

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        pages = tuple(page.extract_text(visitor_operand_before=go_on) for page in reader.pages[:MOST_PAGES])
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except Exception as error:
        raise FormatError(f"not a PDF that can be read: {type(error).__name__}: {error}") from error
    return Extracted(" ".join(title.split()), pages)
