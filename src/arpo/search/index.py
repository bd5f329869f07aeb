"""An index: passages, their words and perhaps their vectors; in memory, or a folder that is built once and memory-mapped.

    INDEX/passages.jsonl, passages.npy           a passage a line, and where each line starts
          scores, rows, starts, words*.npy       BM25 (arpo.search.lexical)
          vectors.npy                            unit vectors, where it was built with an encoder
          index.json                             what it holds, and the size of each file; written last

Knows the folder. Refuses to know where documents come from and how results look.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arpo.errors import ConfigError, FormatError, nearest
from arpo.search.hybrid import fuse
from arpo.search.lexical import Lexical
from arpo.search.passages import Passage
from arpo.search.words import VERSION as WORDS_VERSION

if TYPE_CHECKING:
    from arpo.search.dense import Encoder

MANIFEST = "index.json"
VERSION = 1
MODES = ("lexical", "dense", "hybrid")
DEPTH = 100  # passages of each ranking that hybrid ranking fuses
Mode = Literal["lexical", "dense", "hybrid"]
Progress = Callable[[str, float], None]  # what is being done, and how much of it is done (0 to 1)


def silent(doing: str, done: float) -> None:
    """The progress of nobody who looks."""


class Index:
    """Passages that can be searched. A title counts twice, since it names what the passage is about."""

    def __init__(
        self, passages: Sequence[Passage], lexical: Lexical | None = None, dense: Any = None, mode: str = "lexical"
    ) -> None:
        self.passages = passages if isinstance(passages, _MappedPassages) else tuple(passages)
        self._lexical = lexical or Lexical.build(map(_indexed, self.passages))
        self._dense = dense
        self.mode = _able(mode, dense)

    def ready(self) -> None:
        """Whether its embedding model can be had, where it needs one. Raises ConfigError."""
        if self._dense is not None and self.mode != "lexical":
            self._dense.encoder.ready()

    def find(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """At most `k` passages for `query`, best first, with their scores."""
        return [(self.passages[number], score) for number, score in self.rank(query, k)]

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """At most `k` passages for `query` as (number, score), best first: BM25, cosine or fused ranks, as the mode is.

        Lexical results share a word with the query; dense ones are the nearest, however far.
        """
        if self.mode == "lexical":
            return self._lexical.find(query, k)
        if self.mode == "dense":
            return list(self._dense.find(query, k))
        depth = max(k, DEPTH)
        rankings = [self._lexical.find(query, depth), self._dense.find(query, depth)]
        return fuse([[number for number, _ in ranking] for ranking in rankings], k)

    @classmethod
    def open(cls, folder: Path | str, mode: str = "", encoder: str = "") -> "Index":
        """The index in `folder`, memory-mapped. `mode` "": hybrid where it has vectors, else lexical. `encoder`: where its
        embedding model lies on this machine, if not where it was when the index was built.

        Raises ConfigError where there is none, FormatError where a file is missing, cut short or of another version.
        """
        folder = Path(folder).expanduser()
        about = read_manifest(folder)
        dense = None
        if about["encoder"] and mode != "lexical":
            from arpo.search.dense import Dense, Encoder

            dense = Dense(np.load(folder / "vectors.npy", mmap_mode="r"), Encoder(encoder or about["encoder"]))
        passages = _MappedPassages(folder)
        return cls(passages, Lexical.open(folder, len(passages)), dense, mode or ("hybrid" if dense else "lexical"))


def build_index(
    passages: Iterable[Passage], folder: Path | str, *, encoder: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """Index `passages` into `folder`, which must not be there yet, and say what it holds (the content of index.json).

    All or nothing: the folder takes its name when everything is in it. `encoder`: an embedding model for dense retrieval. Memory:
    the passages' words while they are counted, about 10 bytes a character. Raises ConfigError for no passages or a folder in use.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise ConfigError("there is something already", where="out", value=str(folder), hint="Give a new folder")
    model = _encoder(encoder) if encoder else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        rows = _write_passages(passages, beside, progress)
        if not rows:
            raise ConfigError("no documents found", where="documents")
        mapped = _MappedPassages(beside)
        progress("counting words", 0.0)
        lexical = Lexical.build(map(_indexed, mapped))
        lexical.save(beside)
        dimension = 0
        if model:
            from arpo.search.dense import write_vectors

            _, dimension = write_vectors(beside / "vectors.npy", _Texts(mapped), model, progress)
        files = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
        about = {"format": "arpo index", "version": VERSION, "words": WORDS_VERSION, "passages": rows}
        about |= {"num_words": lexical.num_words, "encoder": encoder, "dimension": dimension, "files": files}
        (beside / MANIFEST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.chmod(beside, 0o777 & ~_umask())  # mkdtemp makes folders that only their owner can enter
        os.rename(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return about


def _encoder(source: str) -> "Encoder":
    """Looked for before anything is read: a mistake is told at once. Raises ConfigError."""
    from arpo.search.dense import Encoder

    encoder = Encoder(source)
    encoder.ready()
    return encoder


def is_index(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What index.json says, checked against the files. Raises as `Index.open`."""
    if not is_index(folder):
        hint = f"Build it: arpo index DOCS {folder}"
        raise ConfigError("there is no index", where="index", value=str(folder), hint=hint)
    try:
        about: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, words, files = about["version"], about["words"], dict(about["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder / MANIFEST}: not an index's: {type(error).__name__}: {error}") from error
    if (version, words) != (VERSION, WORDS_VERSION):
        raise FormatError(f"{folder}: of version {version}, {words}; this needs {VERSION}, {WORDS_VERSION}: build it again")
    for name, size in files.items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there != size:
            raise FormatError(f"{folder / name}: {there:,} bytes, {size:,} were written: copy or build the index again")
    return about


class _MappedPassages(Sequence[Passage]):
    """Passages on disk, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._starts = np.load(folder / "passages.npy", mmap_mode="r")
        self._lines = np.memmap(folder / "passages.jsonl", np.uint8, "r")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        line = self._lines[self._starts[number] : self._starts[number + 1]].tobytes()
        return Passage(*json.loads(line))


class _Texts(Sequence[str]):
    """What is embedded of each passage."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, numbers: Any) -> Any:
        rows = range(len(self))[numbers]
        return [f"{self._passages[row].title}\n{self._passages[row].text}".strip() for row in rows]


def _write_passages(passages: Iterable[Passage], folder: Path, progress: Progress) -> int:
    starts = [0]
    with (folder / "passages.jsonl").open("wb") as file:
        for number, passage in enumerate(passages):
            line = json.dumps([passage.title, passage.text, passage.source], ensure_ascii=False) + "\n"
            starts.append(starts[-1] + file.write(line.encode("utf-8", "surrogatepass")))
            if number % 10_000 == 0:
                progress(f"reading documents ({number:,})", 0.0)
    np.save(folder / "passages.npy", np.asarray(starts, np.int64))
    return len(starts) - 1


def _indexed(passage: Passage) -> str:
    return f"{passage.title} {passage.title} {passage.text}"


def _able(mode: str, dense: Any) -> str:
    if mode not in MODES:
        raise ConfigError("no such mode of search", where="mode", value=mode, hint=nearest(mode, MODES))
    if mode != "lexical" and dense is None:
        raise ConfigError(
            "this index has no vectors", where="mode", value=mode, hint="Build it with an encoder: arpo index --encoder"
        )
    return mode


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
