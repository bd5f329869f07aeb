"""What the built-in worlds (`arpo.tasks.lab`, `arpo.tasks.recall`) share: knobs, which a recipe sets as a source's
`options`, and splits of a fixed size."""

from collections.abc import Mapping
from typing import Any, Self

from arpo.errors import ConfigError, nearest


class WorldKnobs:
    """Base of a frozen dataclass whose fields are a world's knobs."""

    __slots__ = ()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], world: str) -> Self:
        """The knobs that `options` set, the others as they are by default. Raises ConfigError for an unknown one, and
        for a value out of range."""
        known = cls.__dataclass_fields__  # type: ignore[attr-defined]
        for name in options:
            if name not in known:
                hint = nearest(name, known)
                raise ConfigError(f"the {world} has no such knob", where=f"options.{name}", value=name, hint=hint)
        return cls(**options)

    def check(self, name: str, low: float, high: float, *, whole: bool = True) -> None:
        """Raises ConfigError where a knob is no (whole) number from `low` to `high`."""
        value = getattr(self, name)
        kind = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise ConfigError(f"should be from {low} to {high}", where=f"options.{name}", value=value)


def count_of(split: str, counts: Mapping[str, int], world: str) -> int:
    """How many tasks a split has. Raises ConfigError for an unknown one."""
    if split not in counts:
        raise ConfigError(f"unknown split of the {world}", where="split", value=split, hint=nearest(split, counts))
    return counts[split]
