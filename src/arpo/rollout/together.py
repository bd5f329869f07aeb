"""Structured concurrency with plain errors: a task group of which the first failure comes out as itself, not wrapped in a group."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup`. Where a task fails the others are cancelled and awaited, then that task's exception propagates, so
    that callers can catch what is documented; what others raised while they were being cancelled follows from it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
