"""Pages of lists: takes rows until a page is full, in records or in bytes."""

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from caseload_server.domain.limits import MAX_PAGE_BYTES
from caseload_server.domain.requests import PageRequest
from caseload_server.domain.results import Page
from caseload_server.store.backends.protocol import Row

_ROW_OVERHEAD_BYTES: Final = 256
"""Approximate size of a row without its texts, in bytes."""

T = TypeVar("T")


def build_page(
    rows: Iterator[Row], page: PageRequest, make: Callable[[Row], T], revision: str, width: int | None = None
) -> Page[T]:
    """Takes rows until the page is full, in records or in bytes.

    Args: rows, whose first column is the id; width, how many columns `make` takes before the sort key, or None if the
    list is by id.
    """
    taken: list[T] = []
    size, next_after, next_key = 0, "", ""
    last: Row = ()
    for row in rows:
        size += _ROW_OVERHEAD_BYTES + sum(_utf8_bytes(value) for value in row if type(value) is str)
        if len(taken) == page.size or (taken and size > MAX_PAGE_BYTES):
            next_after, next_key = last[0], "" if width is None else last[width]
            break
        taken.append(make(row if width is None else row[:width]))
        last = row
    return Page(taken, next_after, revision, next_key)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
