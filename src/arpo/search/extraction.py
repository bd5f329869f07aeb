"""Extracts the readable text of a web page or a PDF. Needs the extra `web` (trafilatura, pypdf).

Knows bytes and text. Refuses to know where they come from. Both can be made to take hours, or all memory: callers read
what comes from elsewhere in a process with limits (`reader`).
"""

import io
import logging
from dataclasses import dataclass
from functools import cache

import pypdf
import trafilatura
from trafilatura.settings import Document

from arpo.errors import FormatError
from arpo.worker_process import WorkerPool

MAX_PAGES = 200  # of a PDF: a limit on work
MEMORY_BYTES = 1 << 30


@cache
def reader(function: str) -> WorkerPool:
    """The processes that call `html_to_text`, `pdf_to_text` or a function of another module (`module:name`) with a
    limit of memory. Each call gets one of time."""
    path = function if ":" in function else f"{__name__}:{function}"
    return WorkerPool(path, memory_bytes=MEMORY_BYTES)


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


def pdf_to_text(content: bytes) -> Extracted:
    """The text of a PDF's first MAX_PAGES pages. Raises FormatError for a file that is not a PDF, is damaged or
    locked."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about every defect that it could handle
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        pages = tuple(page.extract_text() for page in reader.pages[:MAX_PAGES])
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except Exception as error:
        raise FormatError(f"not a PDF that can be read: {type(error).__name__}: {error}") from error
    return Extracted(" ".join(title.split()), pages)
