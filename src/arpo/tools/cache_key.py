"""Keys of cached calls: two calls are equal if tool, version and canonical arguments are.

Knows arguments. Refuses to know what is cached under a key, and where.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

ANY_VERSION = "*"  # of imported results, whose tool version is unknown


def canonical(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """`arguments` as JSON that is equal where a call means the same.

    Keys are sorted, text is in Unicode's NFC, 2.0 is 2, and an argument that equals its default in `schema` is left
    out. Space stays, also at the ends of a text: it may be code. A tool to which space means nothing has `normalise`.
    """
    properties = schema.get("properties", {})
    kept = {}
    for name, value in arguments.items():
        about = properties.get(name)
        has_default = isinstance(about, Mapping) and "default" in about
        if not has_default or _as_json(value) != _as_json(about["default"]):
            kept[name] = value
    return _as_json(kept)


def key_of(tool: str, version: str, arguments: str, *, recorded: bool = False) -> bytes:
    """The key of a call, 16 bytes; `arguments` as `canonical` writes them. Recorded results have keys apart from cached
    ones, so that a record stays as it was."""
    kind = "recorded" if recorded else "cached"
    return hashlib.blake2b(
        "\0".join((kind, tool, version, arguments)).encode("utf-8", "replace"), digest_size=16
    ).digest()


def digest(use: str, options: Mapping[str, Any]) -> str:
    """The version of a tool that declares none: it changes with the tool and with its options."""
    text = json.dumps([use, options], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _as_json(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
