"""A search index: passages, their words and optionally their vectors, in memory or in a memory-mapped folder.

    INDEX/passages.jsonl, passages.npy           one passage per line, and the offset of every line
          scores, rows, starts, words*.npy       BM25 (arpo.search.lexical)
          vectors.npy                            unit vectors, if the index was built with an encoder
          index.json                             the manifest: content and size of every file; written last

Knows the folder. Refuses to know where documents come from and how results look.

`hybrid` mode ranks by reciprocal rank fusion (Cormack, Clarke and Büttcher 2009):

    score(d) = sum over rankings of 1 / (RANK_CONSTANT + rank of d),   rank from 1
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arpo.errors import ConfigError, FormatError, first_line, nearest
from arpo.files import read_json
from arpo.foreign import MOST_BYTES, checked, loads
from arpo.search.lexical import Lexical, mapped, mapped_bytes
from arpo.search.passages import Passage
from arpo.search.words import VERSION as WORDS_VERSION

if TYPE_CHECKING:
    from arpo.search.dense import Encoder

MANIFEST = "index.json"
VERSION = 1
MODES = ("lexical", "dense", "hybrid")
DEPTH = 100  # number of passages of every ranking that hybrid mode fuses
RANK_CONSTANT = 60  # the paper's constant; it sets how much the first place is worth over the second
Mode = Literal["lexical", "dense", "hybrid"]
Progress = Callable[[str, float], None]  # the current activity, and its progress (0 to 1)


def silent(activity: str, progress: float) -> None:
    """Report progress to nobody."""


class Index:
    """Searchable passages. The words of a title count twice, since it names the passage's subject."""

    def __init__(
        self, passages: Sequence[Passage], lexical: Lexical | None = None, dense: Any = None, mode: str = "lexical"
    ) -> None:
        self.passages = passages if isinstance(passages, _MappedPassages) else tuple(passages)
        self._lexical = lexical or Lexical.build(map(_indexed, self.passages))
        self._dense = dense
        self.mode = _checked_mode(mode, dense)

    def ready(self) -> None:
        """Raise ConfigError if the index needs an embedding model that is not available."""
        if self._dense is not None and self.mode != "lexical":
            self._dense.encoder.ready()

    def find(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """At most `k` passages for `query`, best first, with their scores."""
        return [(self.passages[number], score) for number, score in self.rank(query, k)]

    def rank(self, query: str, k: int) -> list[tuple[int, float]]:
        """At most `k` passages for `query` as (number, score), best first. The mode selects BM25, cosine or fused
        ranks.

        Lexical results share a word with the query; dense results are the nearest ones, however far. Raises FormatError
        for a damaged index.
        """
        try:
            return self._rank(query, k)
        except (IndexError, ValueError) as error:
            raise FormatError(f"the index is damaged: {first_line(error)}") from error

    def _rank(self, query: str, k: int) -> list[tuple[int, float]]:
        if self.mode == "lexical":
            return self._lexical.find(query, k)
        if self.mode == "dense":
            return list(self._dense.find(query, k))
        depth = max(k, DEPTH)
        rankings = [self._lexical.find(query, depth), self._dense.find(query, depth)]
        return fuse([[number for number, _ in ranking] for ranking in rankings], k)

    @classmethod
    def open(cls, folder: Path | str, mode: str = "", encoder: str = "") -> "Index":
        """The index in `folder`, memory-mapped. With an empty `mode` it is hybrid if it has vectors, else lexical.
        `encoder` is the place of the embedding model on this machine, if it differs from the manifest's.

        Raises ConfigError if there is no index, and FormatError if a file is missing, truncated or of another version.
        """
        folder = Path(folder).expanduser()
        manifest = read_manifest(folder)
        dense = None
        if manifest["encoder"] and mode != "lexical":
            from arpo.search.dense import Dense, Encoder

            vectors = mapped(folder / "vectors.npy", np.float32, 2)
            dense = Dense(vectors, Encoder(encoder or str(manifest["encoder"])))
        passages = _MappedPassages(folder)
        if dense is not None and len(dense.vectors) != len(passages):
            raise FormatError(f"{folder / 'vectors.npy'} is not of {len(passages):,} passages: build the index again")
        return cls(passages, Lexical.open(folder, len(passages)), dense, mode or ("hybrid" if dense else "lexical"))


def build_index(
    passages: Iterable[Passage], folder: Path | str, *, encoder: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """Index `passages` into a new `folder`. Returns the manifest (the content of index.json).

    The folder appears only when it is complete. `encoder` names an embedding model for dense retrieval. Memory holds
    the words of the passages while they are counted, about 10 bytes per character. Raises ConfigError if there are no
    passages or the folder exists.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise ConfigError("the folder already exists", where="out", value=str(folder), hint="Name a new folder")
    model = _encoder(encoder) if encoder else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        rows = _write_passages(passages, temporary, progress)
        if not rows:
            raise ConfigError("no documents found", where="documents")
        mapped = _MappedPassages(temporary)
        progress("counting words", 0.0)
        lexical = Lexical.build(map(_indexed, mapped))
        lexical.save(temporary)
        dimension = 0
        if model:
            from arpo.search.dense import write_vectors

            _, dimension = write_vectors(temporary / "vectors.npy", _Texts(mapped), model, progress)
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        manifest = {"format": "arpo index", "version": VERSION, "words": WORDS_VERSION, "passages": rows}
        manifest |= {"num_words": lexical.num_words, "encoder": encoder, "dimension": dimension, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp creates folders that only their owner can enter
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def fuse(rankings: Sequence[Sequence[int]], k: int) -> list[tuple[int, float]]:
    """Reciprocal rank fusion: at most `k` passages of `rankings` (best first) as (number, score), best first; equal
    scores by number."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking, 1):
            scores[passage] = scores.get(passage, 0.0) + 1.0 / (RANK_CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def _encoder(source: str) -> "Encoder":
    """The encoder, checked before anything is read, so that a mistake shows at once. Raises ConfigError."""
    from arpo.search.dense import Encoder

    encoder = Encoder(source)
    encoder.ready()
    return encoder


def is_index(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of index.json, checked against the files. Raises like `Index.open`."""
    if not is_index(folder):
        hint = f"Build it: arpo index DOCS {folder}"
        raise ConfigError("there is no index", where="index", value=str(folder), hint=hint)
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        version, words, files = manifest["version"], manifest["words"], dict(manifest["files"])
        _ = manifest["encoder"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{folder / MANIFEST}: not the manifest of an index: {type(error).__name__}: {error}"
        ) from error
    if (version, words) != (VERSION, WORDS_VERSION):
        raise FormatError(
            f"{folder}: the index has version {version}, {words}, and this version of arpo needs {VERSION}, "
            f"{WORDS_VERSION}: build it again"
        )
    for name, expected in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size != expected:
            raise FormatError(
                f"{folder / name}: has {size:,} bytes instead of {expected:,}: copy or build the index again"
            )
    return manifest


class _MappedPassages(Sequence[Passage]):
    """Passages on disk, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._file, self._starts = folder / "passages.jsonl", mapped(folder / "passages.npy", np.int64)
        self._lines = mapped_bytes(self._file)
        if len(self._starts) < 2:
            raise FormatError(f"{folder / 'passages.npy'} is of no passage: build the index again")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        try:
            return checked(Passage(*loads(self._lines[start : min(end, start + MOST_BYTES)].tobytes())))
        except (ValueError, TypeError, FormatError) as error:
            raise FormatError(f"{self._file}: passage {number:,} is damaged: {first_line(error)}") from error


class _Texts(Sequence[str]):
    """The texts of passages to embed."""

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


def _checked_mode(mode: str, dense: Any) -> str:
    if mode not in MODES:
        raise ConfigError("there is no such search mode", where="mode", value=mode, hint=nearest(mode, MODES))
    if mode != "lexical" and dense is None:
        raise ConfigError(
            "this index has no vectors", where="mode", value=mode, hint="Build it with an encoder: arpo index --encoder"
        )
    return mode


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
