"""Identifies a model by its content and not by its name, since folders are moved, renamed and overwritten.

Knows folders of Hugging Face models. Refuses to know how to load them.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from arpo.errors import ConfigError
from arpo.foreign import WHOLE_BYTES, loads, read_file

EDGE = 4096  # bytes read at both ends of a tensor; a training step changes a tensor everywhere
_NAMES = ("_name_or_path", "transformers_version")  # keys of config.json that do not describe the model
_TOKENIZER, _TEMPLATE = "tokenizer.json", "chat_template.jinja"
_TOKENIZER_FILES = (_TOKENIZER, "tokenizer.model", "vocab.json", "merges.txt")
_TOKENIZER_KEYS = {
    "tokenizer_config.json": ("bos_token", "eos_token", "pad_token", "add_bos_token", "add_eos_token"),
    "generation_config.json": ("eos_token_id",),
}
_HEADER_MB = 256


def identity(*folders: Path) -> str:
    """A digest of 16 hexadecimal digits of the model in `folders` (the model's folder, and optionally one with trained
    weights or adapters). It covers the configuration, the tokenizer, the chat template, and the name, type, shape and
    both ends of every tensor.

    The digest does not depend on the place of the folder or the number of files. It reads a few kB per tensor, so a
    large model takes about as long as opening it. Raises ConfigError for a file of weights that cannot be read.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for name, text in ((_TOKENIZER, _bytes(folder / _TOKENIZER)), (_TEMPLATE, _template(folder))):
            if text is not None:
                digest.update(name.encode() + hashlib.sha256(text).digest())
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                digest.update(_config(folder / name))
        for tensor in sorted(tensor for path in sorted(folder.glob("*.safetensors")) for tensor in _tensors(path)):
            digest.update(tensor)
    return digest.hexdigest()[:16]


def identity_parts(folder: Path) -> dict[str, str]:
    """Digests of the model in `folder`, apart: `model` (configuration and weights, as in `identity`), `tokenizer`
    (its files, and the tokens that end a turn) and `template`."""
    model = hashlib.sha256(_config(folder / "config.json") if (folder / "config.json").is_file() else b"")
    for tensor in sorted(tensor for path in sorted(folder.glob("*.safetensors")) for tensor in _tensors(path)):
        model.update(tensor)
    for path in sorted(folder.glob("*.bin")):  # weights in PyTorch's own form
        size = path.stat().st_size
        with path.open("rb") as file:
            model.update(f"{path.name} {size} ".encode() + _ends(file, 0, size))
    tokenizer = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        tokenizer.update(_bytes(folder / name) or b"")
    for name, kept in _TOKENIZER_KEYS.items():
        value = _json(folder / name) if (folder / name).is_file() else {}
        tokenizer.update(json.dumps([value.get(key) for key in kept] if isinstance(value, dict) else value).encode())
    digests = {"model": model, "tokenizer": tokenizer, "template": hashlib.sha256(_template(folder) or b"")}
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def _bytes(path: Path) -> bytes | None:
    return read_file(path, WHOLE_BYTES) if path.is_file() else None


def _template(folder: Path) -> bytes | None:
    """The chat template: a separate file or, until 2025, a part of the tokenizer's configuration."""
    path = folder / "tokenizer_config.json"
    if (separate := _bytes(folder / _TEMPLATE)) is not None or not path.is_file():
        return separate
    config = _json(path)
    template = config.get("chat_template") if isinstance(config, dict) else None
    return None if template is None else (template if isinstance(template, str) else json.dumps(template)).encode()


def _json(path: Path) -> Any:
    try:
        return loads(read_file(path))
    except ValueError as error:
        raise ConfigError(f"is not JSON ({error})", where=str(path)) from error


def _config(path: Path) -> bytes:
    value = _json(path)
    kept = {key: item for key, item in value.items() if key not in _NAMES} if isinstance(value, dict) else value
    return path.name.encode() + json.dumps(kept, sort_keys=True).encode()


def _tensors(path: Path) -> Iterator[bytes]:
    """A digest of every tensor in a safetensors file. The file holds the length of the header (uint64), the header
    (JSON with offsets) and the data."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length) if length <= _HEADER_MB << 20 else "")
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    description = json.dumps([name, entry["dtype"], entry["shape"]]).encode()
                    yield description + hashlib.sha256(_ends(file, 8 + length + start, end - start)).digest()
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"is not a complete safetensors file ({error!r:.120})", where=str(path)) from error


def _ends(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    first = file.read(min(EDGE, size))
    if size <= EDGE:
        return first
    file.seek(start + max(EDGE, size - EDGE))
    return first + file.read(min(EDGE, size - EDGE))
