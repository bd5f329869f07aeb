"""Documents to search: from a list, a folder of texts, a JSONL file, or the bundled `atlas`.

Knows the shapes in which corpora circulate. Refuses to know how they are searched.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError, FormatError

TEXT_KEYS = ("text", "contents", "content", "passage", "body")
FOLDER_PASSAGE_CHARS = 1_000


@dataclass(frozen=True, slots=True)
class Passage:
    title: str
    text: str


def read_documents(source: object) -> list[Passage]:
    """The passages of `source`: `"atlas"`, a path, or an iterable of mappings with `text` (or `contents`) and perhaps `title`.

    A folder gives one passage a paragraph block of its .txt and .md files, titled by file; a JSONL file one a line. Raises
    ConfigError where nothing is found, FormatError with file and line where something is no document.
    """
    if isinstance(source, str) and source == "atlas":
        from arpo.tasks import atlas

        return from_mappings(atlas.documents(), "atlas")
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            passages = from_folder(path)
        elif path.is_file():
            passages = from_jsonl(path)
        else:
            hint = "`atlas`, or a path: a recipe's is read from its own folder, else from the folder the command runs in"
            raise ConfigError("no such file or folder", where="documents", value=str(source), hint=hint)
        if not passages:
            raise ConfigError("no documents found", where="documents", value=str(source))
        return passages
    if isinstance(source, Iterable):
        return from_mappings(source, "documents")
    raise ConfigError("documents are `atlas`, a path or a list", where="documents", value=source)


def from_mappings(documents: Iterable[Any], where: str) -> list[Passage]:
    return [_passage(document, f"{where}[{number}]") for number, document in enumerate(documents)]


def from_jsonl(path: Path) -> list[Passage]:
    passages = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    passages.append(_passage(json.loads(line), f"{path}:{number}"))
                except ValueError as error:
                    raise FormatError(f"{path}:{number}: not JSON: {error}") from error
    return passages


def from_folder(folder: Path) -> list[Passage]:
    passages: list[Passage] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".txt", ".md") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            passages += [Passage(path.stem.replace("_", " "), block) for block in _blocks(text)]
    return passages


def _blocks(text: str) -> list[str]:
    """Paragraphs, joined up to about FOLDER_PASSAGE_CHARS; a longer paragraph stays whole."""
    blocks: list[str] = []
    for paragraph in filter(None, (" ".join(part.split()) for part in text.split("\n\n"))):
        if blocks and len(blocks[-1]) + len(paragraph) < FOLDER_PASSAGE_CHARS:
            blocks[-1] += " " + paragraph
        else:
            blocks.append(paragraph)
    return blocks


def _passage(document: Any, where: str) -> Passage:
    if not isinstance(document, Mapping):
        raise FormatError(f"{where}: a document is an object with `text` and perhaps `title`, not {document!r:.80}")
    text = next((document[key] for key in TEXT_KEYS if isinstance(document.get(key), str)), None)
    if text is None:
        raise FormatError(f"{where}: a document needs `text`, this one has {', '.join(map(str, document)) or 'nothing'}")
    title = str(document.get("title") or "")
    first, _, rest = text.partition("\n")
    if not title and rest and first.startswith('"') and first.endswith('"'):  # "Title"\ntext, as retrieval corpora write it
        title, text = first.strip('"'), rest
    return Passage(" ".join(title.split()), " ".join(text.split()))
