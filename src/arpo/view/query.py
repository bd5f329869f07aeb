"""Checks the values of a request's query. Every value is taken once; a value that nobody takes is an error."""

from collections.abc import Mapping

from arpo.errors import ConfigError

MOST_ROWS = 1_000  # of a table in one answer


class Query:
    """The query after the `?`. `most_rows` bounds `limit`; an export requests all rows."""

    def __init__(self, given: Mapping[str, str] | None = None, *, most_rows: int = MOST_ROWS) -> None:
        self._given, self._taken, self.most_rows = dict(given or {}), set[str](), most_rows

    def text(self, name: str) -> str | None:
        """The value, or None if it is missing or empty."""
        self._taken.add(name)
        return self._given.get(name) or None

    def needed(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise ConfigError("is missing", where=f"query {name}")
        return value

    def whole(self, name: str, default: int, *, least: int = 0, most: int = 1 << 53) -> int:
        value = self.maybe_whole(name)
        if value is None:
            return default
        if not least <= value <= most:
            raise ConfigError(f"must be from {least} to {most}", where=f"query {name}", value=value)
        return value

    def maybe_whole(self, name: str) -> int | None:
        value = self.text(name)
        try:
            number = None if value is None else int(value[:20])
        except ValueError as error:
            raise ConfigError("must be a whole number", where=f"query {name}", value=value) from error
        if number is not None and abs(number) > 1 << 53:
            raise ConfigError("is too large", where=f"query {name}", value=number)
        return number

    def number(self, name: str) -> float | None:
        value = self.text(name)
        try:
            return None if value is None else float(value[:40])
        except ValueError as error:
            raise ConfigError("must be a number", where=f"query {name}", value=value) from error

    def finish(self) -> None:
        """Raise ConfigError if a value was not taken."""
        if unknown := sorted(set(self._given) - self._taken):
            raise ConfigError("unknown", where=f"query {unknown[0]}", hint=f"known: {', '.join(sorted(self._taken))}")
