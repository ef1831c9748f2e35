"""Runs a coroutine of a test."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tests.support.waiting import HUNG_SECONDS

T = TypeVar("T")
_LOOK_SECONDS = 0.01


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Returns the result, from an event loop in debug mode, which reports coroutines that were never awaited."""
    return asyncio.run(in_time(coroutine), debug=True)


async def in_time(awaitable: Awaitable[T]) -> T:
    """Returns the result. Raises TimeoutError after HUNG_SECONDS."""
    return await asyncio.wait_for(_outcome(awaitable), HUNG_SECONDS)


async def _outcome(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def eventually(look: Callable[[], object]) -> None:
    """Waits, without blocking the loop, until look() returns something true."""

    async def seen() -> None:
        while not look():
            await asyncio.sleep(_LOOK_SECONDS)

    await in_time(seen())
