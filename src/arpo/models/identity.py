"""Which model was asked, by what it is and not by what it is called: folders are moved, renamed, and written anew.

Knows folders of Hugging Face models. Refuses to know how they are loaded.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from arpo.errors import ConfigError

EDGE = 4096  # bytes of a tensor that are read at either end: a step of training changes a tensor everywhere
_NAMES = ("_name_or_path", "transformers_version")  # of config.json, which say nothing about the model
_TOKENIZER, _TEMPLATE = "tokenizer.json", "chat_template.jinja"
_HEADER_MB = 256


def identity(*folders: Path) -> str:
    """16 hexadecimal digits of the model in `folders` (a model's, and perhaps one with trained weights or adapters): its
    configuration, tokenizer, chat template, and of each tensor name, type, shape and both ends.

    The same model has the same digits wherever it lies and however many files it is in. Reads some kB a tensor, so a large model
    takes no longer to name than to open. Raises ConfigError for a file of weights that cannot be read.
    """
    whole = hashlib.sha256()
    for folder in folders:
        for name, text in ((_TOKENIZER, _bytes(folder / _TOKENIZER)), (_TEMPLATE, _template(folder))):
            if text is not None:
                whole.update(name.encode() + hashlib.sha256(text).digest())
        for name in ("config.json", "adapter_config.json"):
            if (folder / name).is_file():
                whole.update(_config(folder / name))
        for tensor in sorted(each for path in sorted(folder.glob("*.safetensors")) for each in _tensors(path)):
            whole.update(tensor)
    return whole.hexdigest()[:16]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _template(folder: Path) -> bytes | None:
    """Of chats: a file of its own, or, as it was until 2025, a part of the tokenizer's configuration."""
    path = folder / "tokenizer_config.json"
    if (alone := _bytes(folder / _TEMPLATE)) is not None or not path.is_file():
        return alone
    found = _json(path)
    template = found.get("chat_template") if isinstance(found, dict) else None
    return None if template is None else (template if isinstance(template, str) else json.dumps(template)).encode()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"is no JSON ({error})", where=str(path)) from error


def _config(path: Path) -> bytes:
    value = _json(path)
    kept = {key: item for key, item in value.items() if key not in _NAMES} if isinstance(value, dict) else value
    return path.name.encode() + json.dumps(kept, sort_keys=True).encode()


def _tensors(path: Path) -> Iterator[bytes]:
    """A digest of each tensor of a safetensors file: length of the header (uint64), header (JSON with offsets), data."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length) if length <= _HEADER_MB << 20 else "")
            for name, told in header.items():
                if name != "__metadata__":
                    start, end = told["data_offsets"]
                    said = json.dumps([name, told["dtype"], told["shape"]]).encode()
                    yield said + hashlib.sha256(_ends(file, 8 + length + start, end - start)).digest()
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"is no whole file of safetensors ({error!r:.120})", where=str(path)) from error


def _ends(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    first = file.read(min(EDGE, size))
    if size <= EDGE:
        return first
    file.seek(start + max(EDGE, size - EDGE))
    return first + file.read(min(EDGE, size - EDGE))
