"""Writes that share a transaction, at a moment that the test chooses, on either database."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from caseload_server.store.backends.protocol import Sharing

from tests.support.waiting import HUNG_SECONDS, eventually, join


class HolderRefused(Exception):
    """Rolls back the transaction that the queue waits behind, so that it has no commit."""


@contextmanager
def transaction_under_way(database: Any) -> Iterator[None]:
    """Holds a writer at the end of its transaction, so that others queue behind it."""
    entered, leave = threading.Event(), threading.Event()

    def tail(_transaction: object, _outcomes: list[None]) -> list[None]:
        entered.set()
        assert leave.wait(HUNG_SECONDS)
        raise HolderRefused

    def hold() -> None:
        with suppress(HolderRefused):
            database.write_with_tail(lambda _: None, tail, Sharing())

    database._group_commit._max_leaders = 1
    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(HUNG_SECONDS)
    try:
        yield
    finally:
        leave.set()
        join(holder)


def batch(
    database: Any,
    works: Sequence[Callable[[], Any]],
    results: list[Any] | None = None,
    *,
    queued: int | None = None,
    under_way: Callable[[Any], AbstractContextManager[None]] = transaction_under_way,
) -> list[Any]:
    """Runs all works in one transaction, in order. Returns what each returned or raised.

    Args: results, a list to fill in the order of the works, for a look at it meanwhile; queued, how many works reach
    the queue; under_way, holds up the transaction before.
    """
    results = [] if results is None else results
    results += [None] * len(works)

    def one(number: int) -> None:
        try:
            results[number] = works[number]()
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(works))]
    with under_way(database):
        for number, thread in enumerate(threads):
            thread.start()
            expected = number + 1 if queued is None else min(number + 1, queued)
            eventually(lambda expected=expected: len(database._group_commit._queue) == expected)  # type: ignore[misc]
    join(*threads)
    return results
