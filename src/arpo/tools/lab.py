"""The laboratory's tools: each looks at one place of its task's trail (`arpo.tasks.lab`)."""

from arpo.tasks.lab import trail_of
from arpo.tools import CallContext
from arpo.tools.function import tool


@tool
async def look(place: str, context: CallContext) -> str:
    """See the doors of a place."""
    return trail_of(context.task).answer("look", place.strip())


@tool
async def search(place: str, context: CallContext) -> str:
    """Find the doors of a dark place."""
    return trail_of(context.task).answer("search", place.strip())


@tool
async def ask(place: str, context: CallContext) -> str:
    """Ask whether a place is on the trail."""
    return trail_of(context.task).answer("ask", place.strip())
