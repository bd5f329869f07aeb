"""`arpo cache` shows, exports, imports and deletes the cached results of tools.

Knows the store and three file formats: exported lines, a JSON object of queries and results, and JSON lines of both.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, FormatError, nearest
from arpo.files import cache_folder
from arpo.foreign import WHOLE_BYTES, loads, read_text
from arpo.tools.cache_key import ANY_VERSION, canonical, key_of
from arpo.tools.store import Entry, Store, as_line, read_line


def store_at(file: Path | None, tool: str = "") -> Store:
    """The store in `file`, else the user's. Raises ConfigError if there is none, or if it holds nothing of `tool`."""
    path = file or cache_folder() / "tools.sqlite"
    if not path.is_file():
        raise ConfigError("nothing has been cached or recorded here", value=str(path), hint="Another file: --file")
    store = Store(path)
    names = {name for name, *_ in store.by_tool()} if tool else set()
    if tool and tool not in names:
        raise ConfigError(
            "nothing of this tool is kept", where="--tool", value=tool, hint=nearest(tool, names) if names else ""
        )
    return store


def stats(store: Store) -> str:
    """A table of the entries by tool, with their sizes and dates."""
    entries, size, recorded = store.totals()
    lines = [f"{store.path}: {entries:,} results ({recorded:,} recorded), {size / 2**20:,.1f} MB"]
    for tool, version, count, of_record, held, first, last in store.by_tool():
        name = f"{tool} {version}".strip()
        days = (
            f"{time.strftime('%Y-%m-%d', time.localtime(first))} to {time.strftime('%Y-%m-%d', time.localtime(last))}"
        )
        lines.append(f"  {name}: {count:,} ({of_record:,} recorded), {held / 2**20:,.2f} MB, {days}")
    return "\n".join(lines)


def export(store: Store, out: Path | None, tool: str) -> Iterator[str]:
    """Every entry as a JSON line, written to `out` or yielded."""
    lines = map(as_line, store.entries(tool))
    if out is None:
        yield from lines
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")  # streamed: a cache may be larger than memory
    with part.open("w", encoding="utf-8") as file:
        count = sum(1 for line in lines if file.write(f"{line}\n"))
    part.replace(out)
    yield f"wrote {count:,} results to {out}"


def load(into: Path | None, file: Path, tool: str, argument: str) -> str:
    """Record the results in `file` in the store `into` (else the user's), for replay. Returns a message. Raises
    ConfigError, or FormatError, which names file and line; then it records nothing."""
    try:
        text = read_text(file, WHOLE_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file)) from error
    entries = list(_entries(text, str(file), tool, argument))
    store = Store(into or cache_folder() / "tools.sqlite")
    return f"recorded {store.put(entries):,} results in {store.path}"


def _entries(text: str, where: str, tool: str, argument: str) -> Iterator[Entry]:
    whole = _whole(text)
    if isinstance(whole, dict) and "tool" not in whole:
        for query, result in whole.items():
            if not isinstance(result, str):
                raise FormatError(
                    f"{where}: the result of {query[:60]!r} should be a text, not {type(result).__name__}"
                )
            yield _entry(tool, ANY_VERSION, {argument: query.strip()}, {"text": result, "empty": not result.strip()})
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            values = read_line(line, f"{where}:{number}")
            try:
                yield _entry(values["tool"], str(values.get("version", ANY_VERSION)), values["arguments"], values)
            except (KeyError, ValueError, TypeError) as error:
                raise FormatError(f"{where}:{number}: no exported result: {error!r}") from error


def _whole(text: str) -> Any:
    try:
        return loads(text.encode())
    except ValueError:
        return None  # lines, or nothing: those say where


def _entry(tool: str, version: str, arguments: dict[str, Any], values: dict[str, Any]) -> Entry:
    words = canonical(arguments, {})
    text = values["text"]
    if not isinstance(text, str):
        raise TypeError(f"`text` is {type(text).__name__}")
    return Entry(
        key=key_of(tool, version, words, recorded=True),
        tool=tool,
        version=version,
        arguments=words,
        status=CallStatus(values.get("status", "ok")),
        text=text,
        fault=str(values.get("fault", "")),
        empty=bool(values.get("empty", False)),
        made=float(values.get("made", time.time())),
        recorded=True,
    )
