"""BM25 over passages (Robertson and Zaragoza 2009, in Lucene's form, by bm25s), in memory or memory-mapped from a
folder.

Knows words and scores. Of equal scores the first passage wins, so that results depend only on the passages and the
query.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arpo.errors import FormatError, first_line
from arpo.foreign import open_file
from arpo.search.words import words

ARRAYS = ("scores.npy", "rows.npy", "starts.npy", "words.npy", "word_numbers.npy")
VOCABULARY = "words.txt"
Array = NDArray[Any]


class Lexical:
    """Finds the passages that share words with a query.

    `vocabulary.get(word)` is the number n of a word (None: no passage has it), `rows[starts[n]:starts[n + 1]]` are the
    passages that contain it, and `scores` its score in each of them.
    """

    def __init__(self, vocabulary: Any, scores: Array, rows: Array, starts: Array, num_passages: int) -> None:
        self._vocabulary, self._scores, self._rows, self._starts = vocabulary, scores, rows, starts
        self._num_passages = num_passages

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Lexical":
        """An index over `texts`. The number of a passage is its position among them."""
        import bm25s

        tokens = [words(text) for text in texts]
        if not any(tokens):
            return cls({}, np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64), len(tokens))
        bm25 = bm25s.BM25(backend="numpy")
        bm25.index(tokens, create_empty_token=False, show_progress=False)
        matrix = bm25.scores
        return cls(bm25.vocab_dict, matrix["data"], matrix["indices"], matrix["indptr"], len(tokens))

    def find(self, query: str, k: int) -> list[tuple[int, float]]:
        """At most `k` passages that share a word with `query`, as (number, score), best first."""
        known = [number for number in map(self._vocabulary.get, words(query)) if number is not None]
        if not known:
            return []
        total = np.zeros(self._num_passages, np.float32)
        for number in known:
            entries = slice(self._starts[number], self._starts[number + 1])
            total[self._rows[entries]] += self._scores[entries]  # the rows of one word are all different
        return best(total, k)

    @property
    def num_words(self) -> int:
        return len(self._vocabulary)

    def save(self, folder: Path) -> None:
        spelled = sorted((word.encode("utf-8", "surrogatepass"), number) for word, number in self._vocabulary.items())
        (folder / VOCABULARY).write_bytes(b"".join(word for word, _ in spelled))
        ends = np.cumsum([0, *(len(word) for word, _ in spelled)], dtype=np.int64)
        numbers = np.asarray([number for _, number in spelled], np.int32)
        rows, starts = np.asarray(self._rows, np.int32), np.asarray(self._starts, np.int64)
        parts: tuple[Array, ...] = (self._scores, rows, starts, ends, numbers)
        for name, part in zip(ARRAYS, parts, strict=True):
            np.save(folder / name, part)

    @classmethod
    def open(cls, folder: Path, num_passages: int) -> "Lexical":
        """The index in `folder`, memory-mapped: pages are read on demand and shared between processes."""
        kinds = (np.float32, np.int32, np.int64, np.int64, np.int32)
        scores, rows, starts, ends, numbers = map(mapped, (folder / name for name in ARRAYS), kinds)
        spelled = mapped_bytes(folder / VOCABULARY) if len(numbers) else np.zeros(0, np.uint8)
        if len(rows) != len(scores) or {len(starts), len(ends)} != {len(numbers) + 1}:
            raise FormatError(f"{folder}: {', '.join(ARRAYS)} do not fit together: copy or build the index again")
        return cls(_MappedWords(spelled, ends, numbers), scores, rows, starts, num_passages)


class _MappedWords:
    """A vocabulary on disk: concatenated sorted words and binary search. A lookup takes a few microseconds, and nothing
    has to be loaded."""

    def __init__(self, spelled: NDArray[np.uint8], ends: NDArray[np.int64], numbers: NDArray[np.int32]) -> None:
        self._spelled, self._ends, self._numbers = spelled, ends, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def get(self, word: str) -> int | None:
        target = word.encode("utf-8", "surrogatepass")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._word(middle) < target:
                low = middle + 1
            else:
                high = middle
        return int(self._numbers[low]) if low < len(self) and self._word(low) == target else None

    def _word(self, at: int) -> bytes:
        return self._spelled[self._ends[at] : self._ends[at + 1]].tobytes()


def mapped(path: Path, kind: type, ndim: int = 1) -> Array:
    """The array of numbers of type `kind` in a .npy file, memory-mapped. Raises FormatError for something else."""
    open_file(path).close()
    try:
        array: Array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise FormatError(f"{path} is no array of numbers: {first_line(error)}") from error
    if array.dtype != kind or array.ndim != ndim:
        raise FormatError(f"{path} holds {array.ndim} dimensions of {array.dtype}, not {ndim} of {kind.__name__}")
    return array


def mapped_bytes(path: Path) -> NDArray[np.uint8]:
    """A file, memory-mapped. Raises FormatError where it is empty or no file."""
    with open_file(path) as file:
        if not file.seek(0, 2):
            raise FormatError(f"{path} is empty")
        return np.memmap(file, np.uint8, "r")


def best(scores: NDArray[Any], k: int) -> list[tuple[int, float]]:
    """The `k` highest positive `scores` as (number, score), highest first; equal scores by number."""
    k = min(k, len(scores))
    threshold = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero((scores >= threshold) & (scores > 0))
    order = candidates[np.lexsort((candidates, -scores[candidates]))][:k]
    return [(int(number), float(scores[number])) for number in order]
