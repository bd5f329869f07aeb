"""What makes two calls the same call: the tool, its version, and its arguments in one canonical form.

Knows arguments. Refuses to know what is kept under a key, and where.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

ANY_VERSION = "*"  # of results that were imported: nobody knows which version of a tool they came from


def canonical(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """`arguments` as JSON that is equal where a call means the same.

    Keys are sorted, text is in Unicode's NFC, 2.0 is 2, and what equals its default in `schema` is left out. Space stays, at the
    ends of a text too: it may be code, or what `join` puts between words. A tool for which it says nothing has `normalise`.
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
    """16 bytes under which the result of a call is kept; `arguments` as `canonical` writes them. What a run recorded is kept
    apart from what others cache, so that it stays as it was."""
    kind = "recorded" if recorded else "cached"
    return hashlib.blake2b("\0".join((kind, tool, version, arguments)).encode("utf-8", "replace"), digest_size=16).digest()


def digest(use: str, options: Mapping[str, Any]) -> str:
    """A version for a tool that declares none: another one for another tool, and where it was built with other options."""
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
