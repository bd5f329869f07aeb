"""Extracts the readable text of a web page or a PDF. Needs the extra `web` (trafilatura, pypdf).

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

MAX_PAGES = 200  # of a PDF: a limit on work


@dataclass(frozen=True, slots=True)
class Extracted:
    title: str
    pages: tuple[str, ...]  # one for a web page; all pages of a PDF in order, also empty ones

    @property
    def text(self) -> str:
        return "\n\n".join(page for page in self.pages if page)


def html_to_text(content: bytes | str) -> Extracted:
    """The main text of a page without menus, with tables, one paragraph per line. Empty if there is none."""
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it warns about every empty page, which is fine here
    document = trafilatura.bare_extraction(content, include_comments=False, include_tables=True, with_metadata=True)
    if not isinstance(document, Document):
        return Extracted("", ())
    return Extracted(" ".join((document.title or "").split()), (document.text or "",))


def pdf_to_text(content: bytes, *, cpu_s: float = math.inf) -> Extracted:
    """The text of a PDF's first MAX_PAGES pages.

    Raises FormatError for a file that is not a PDF, is damaged or locked, or takes this thread longer than `cpu_s`
    seconds of processor time: two kilobytes can expand to a day of work.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about every defect that it could handle
    deadline = time.thread_time() + cpu_s

    def check_time(*_: object) -> None:
        if time.thread_time() > deadline:
            raise TimeoutError(f"more than {cpu_s:g} s of work")

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        pages = tuple(page.extract_text(visitor_operand_before=check_time) for page in reader.pages[:MAX_PAGES])
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except Exception as error:
        raise FormatError(f"not a PDF that can be read: {type(error).__name__}: {error}") from error
    return Extracted(" ".join(title.split()), pages)
