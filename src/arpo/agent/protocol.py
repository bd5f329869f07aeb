"""An agent's steps as JSON, as `arpo serve` streams them."""

from arpo.chat.openai_wire import Json
from arpo.core.place import show
from arpo.core.tree import ToolCallResult
from arpo.files import as_json
from arpo.rollout.watching import Branched, BranchEnded, ResultsRead, RolloutEvent, TextWritten, TurnWritten


def event_json(event: RolloutEvent) -> Json:
    """A step as JSON: `type`, `place` ("0.1") and what the event says."""
    own: Json
    match event:
        case TextWritten():
            own = {"type": "text", "text": event.text, "attempt": event.attempt}
        case TurnWritten():
            calls = [{"name": c.name, "arguments": as_json(c.arguments), "error": c.error} for c in event.turn.calls]
            own = {"type": "turn", "text": event.turn.text, "calls": calls, "answer": event.turn.answer}
        case ResultsRead():
            own = {"type": "results", "text": event.text, "results": [_result_json(r) for r in event.results]}
        case Branched():
            own = {"type": "branch", "siblings": event.siblings}
        case BranchEnded():
            own = {
                "type": "end",
                "ending": event.ending.value,
                "why": event.why,
            }
    return {**own, "place": show(event.place)}


def _result_json(result: ToolCallResult) -> Json:
    return {
        "tool": result.tool,
        "status": result.status.value,
        "text": result.text,
        "seconds": round(result.seconds, 3),
        "cut": result.cut,
    }
