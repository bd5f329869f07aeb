"""Reads the documents to search: a list, a JSONL or parquet file, a folder of texts, web pages and PDFs, or the
`atlas`.

Knows files and the shapes in which corpora circulate. Refuses to know how to search passages.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError, FormatError, install
from arpo.foreign import WHOLE_BYTES, lines, loads, read_file
from arpo.search.passages import Passage, cut, from_mappings, passage_from
from arpo.worker_process import WorkerError

READ_S = 60.0  # that a page or PDF may take to be read
WEB = ("web pages and PDFs need trafilatura and pypdf", install("web"))


def read_documents(source: object) -> list[Passage]:
    """The passages of `source`: `"atlas"`, a path, or an iterable of mappings with `text` (or `contents`) and perhaps
    `title`.

    A JSONL or parquet file holds one passage per line or row. A folder yields its .txt, .md, .html and .pdf files in
    pieces of about 1,000 characters, titled by file name (a page by its title), and the lines and rows of its .jsonl
    and .parquet files, without hidden folders and indexes. Raises ConfigError if there is no document, and FormatError,
    which names file and line, for an entry that is not a document.
    """
    if isinstance(source, str) and source == "atlas":
        from arpo.tasks import atlas

        return from_mappings(atlas.documents(), "atlas")
    if isinstance(source, (str, Path)):
        passages = list(read_path(Path(source).expanduser()))
        if not passages:
            readable = ", ".join(READERS)
            raise ConfigError(
                "no documents found", where="documents", value=str(source), hint=f"Files end in {readable}"
            )
        return passages
    if isinstance(source, Iterable):
        return from_mappings(source, "documents")
    raise ConfigError("documents must be `atlas`, a path or a list", where="documents", value=source)


def read_path(path: Path, skipped: Callable[[FormatError], None] | None = None) -> Iterator[Passage]:
    """The passages of a file, or of all files below a folder in order of their names. Raises like `read_documents`.
    With `skipped`, an unreadable page or PDF in a folder is left out, and `skipped` gets the error."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            kind, name = file.suffix.lower(), file.relative_to(path)
            hidden = any(part.startswith(".") for part in name.parent.parts)
            if kind in READERS and file.is_file() and not hidden and not _is_index(file.parent):
                passages = READERS[kind](file, name.as_posix())
                yield from passages if skipped is None or kind not in WHOLE else _or_none(passages, skipped)
    elif path.is_file():
        yield from READERS.get(path.suffix.lower(), from_jsonl)(path, path.name)
    else:
        hint = "`atlas`, or a path relative to the recipe's folder, else to the folder in which the command runs"
        raise ConfigError("no such file or folder", where="documents", value=str(path), hint=hint)


def from_jsonl(path: Path, name: str) -> Iterator[Passage]:
    for number, line in lines(path):
        if (content := line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
            yield passage_from(_parsed(content, f"{path}:{number}"), f"{path}:{number}")


def from_parquet(path: Path, name: str) -> Iterator[Passage]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        row = 0
        for batch in file.iter_batches(batch_size=1_000):
            for document in batch.to_pylist():
                row += 1
                yield passage_from(document, f"{path}: row {row}")
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError(f"{path}: not parquet: {error}") from error


def from_text(path: Path, name: str) -> Iterator[Passage]:
    content = read_file(path, WHOLE_BYTES)
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = content.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")
    title = _title(path)
    yield from (Passage(title, piece, name) for piece in cut(text))


def from_html(path: Path, name: str) -> Iterator[Passage]:
    page = _extracted(path, "html_to_text")
    yield from (Passage(page.title or _title(path), piece, name) for piece in cut(page.text, "\n"))


def from_pdf(path: Path, name: str) -> Iterator[Passage]:
    page = _extracted(path, "pdf_to_text")
    for number, text in enumerate(page.pages, 1):
        yield from (Passage(page.title or _title(path), piece, f"{name}, page {number}") for piece in cut(text))


READERS: dict[str, Callable[[Path, str], Iterator[Passage]]] = {
    ".txt": from_text,
    ".md": from_text,
    ".html": from_html,
    ".htm": from_html,
    ".pdf": from_pdf,
    ".jsonl": from_jsonl,
    ".parquet": from_parquet,
}


WHOLE = (".html", ".htm", ".pdf")  # formats that are read as a whole; the others are read line by line


def _or_none(passages: Iterator[Passage], skipped: Callable[[FormatError], None]) -> list[Passage]:
    try:
        return list(passages)
    except FormatError as error:
        skipped(error)
        return []


def _extracted(path: Path, function: str) -> Any:
    try:
        from arpo.search.extraction import reader

        return reader(function).call({"content": read_file(path, WHOLE_BYTES)}, READ_S)
    except ImportError as error:
        raise ConfigError(WEB[0], where="documents", value=str(path), hint=WEB[1]) from error
    except (TimeoutError, MemoryError, WorkerError) as error:
        raise FormatError(f"{path}: takes more than {READ_S:g} s, or too much memory, to be read ({error})") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _parsed(line: bytes, where: str) -> Any:
    try:
        line.decode("utf-8")
        return loads(line)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}") from error


def _is_index(folder: Path) -> bool:
    return (folder / "index.json").is_file() and (folder / "passages.npy").is_file()  # of any version


def _title(path: Path) -> str:
    return path.stem.replace("_", " ")
