"""Iterators over the pages of a list."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Page = TypeVar("Page", bound=Message)


def pages(method: Callable[[Request], Page], request: Request) -> Iterator[Page]:
    """Yields the pages of a list. It requests a page when you ask for it, and not earlier.

    Args:
        method: a List method, such as caseload.therapists.ListTherapists. For a deadline or metadata of each call, pass
            functools.partial(method, timeout=3).
        request: the request of the first page, which is not changed. Its page_size is the largest size of each page.

    Raises grpc.RpcError if a call fails, and ValueError if the method does not return pages (https://google.aip.dev/158).
    """
    following: Request | None = request
    while following is not None:
        page = method(following)
        yield page
        following = request_after(following, page)


def request_after(request: Request, page: Message) -> Request | None:
    """Returns the request of the next page, or None if this page is the last."""
    field, position = _position_after(page)
    if not position:
        return None
    following = type(request)()
    following.CopyFrom(request)
    setattr(following, field, position)
    return following


def _position_after(page: Any) -> tuple[str, str]:
    """Returns the field that the next request sets, and its value."""
    names = page.DESCRIPTOR.fields_by_name
    if "next_page_token" in names:
        return "page_token", page.next_page_token
    if "head_revision" not in names:
        raise ValueError(f"{page.DESCRIPTOR.name} is no page of a list")
    at_end = page.through_revision == page.head_revision  # ListChanges continues after a revision
    return "after_revision", "" if at_end else page.through_revision
