"""What programs read of a run's summary.json, and of which kind it must be: the run may be somebody else's."""

from collections.abc import Mapping
from typing import Any

from arpo.foreign import check_values

_ESTIMATES = tuple(f"{kind}_{when}" for kind in ("accuracy", "greedy") for when in ("before", "after", "gain"))
_ESTIMATE = {"mean": float | None, "low": float | None, "high": float | None, "n": int}
_GATE = {"what": str, "goal": float, "measured": float | None, "holds": bool}
_SUMMARY: dict[str, Any] = {
    "status": str,
    "seconds": Mapping[str, float],
    "gates": list[Mapping[str, Any]],
    "unplanned_cold_start": Mapping[str, Any] | None,
    **dict.fromkeys(("steps", "tool_calls", "tokens_generated", "tokens_trained"), float),
    **dict.fromkeys(_ESTIMATES, Mapping[str, Any] | None),
}


def check_summary(summary: Mapping[str, Any], place: str) -> None:
    """Raises FormatError, which names `place` and the key, for a value of another kind."""
    check_values(summary, _SUMMARY, place)
    estimates = {key: summary[key] for key in _ESTIMATES if summary.get(key)}
    gates = {f"gates.{number}": gate for number, gate in enumerate(summary.get("gates", ()))}
    for kind, parts in ((_ESTIMATE, estimates), (_GATE, gates)):
        for key, part in parts.items():
            check_values({**dict.fromkeys(kind), **part}, kind, f"{place}: {key}")
