"""Iterators over the pages of a list."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Page = TypeVar("Page", bound=Message)


def pages(method: Callable[[Request], Page], request: Request) -> Iterator[Page]:
    """Yields each page of a list. It asks for a page when the one before it has been processed.

    Args:
        method: a method that returns pages, such as caseload.therapists.ListTherapists. To set a deadline of each page,
            or metadata, pass functools.partial(method, timeout=3).
        request: the first request. It is not changed. Its page_size is the size of each page.

    Raises grpc.RpcError, as the method does, and ValueError where its response is no page. AIP-158 describes pages.
    """
    following: Request | None = request
    while following is not None:
        page = method(following)
        yield page
        following = request_after(following, page)


def request_after(request: Request, page: Message) -> Request | None:
    """Returns the request for the page after this one, or None if this one is the last."""
    field, position = _position_after(page)
    if not position:
        return None
    following = type(request)()
    following.CopyFrom(request)
    setattr(following, field, position)
    return following


def _position_after(page: Any) -> tuple[str, str]:
    """The field of the next request, and its value."""
    names = page.DESCRIPTOR.fields_by_name
    if "next_page_token" in names:
        return "page_token", page.next_page_token
    if "head_revision" not in names:
        raise ValueError(f"{page.DESCRIPTOR.name} is no page of a list")
    at_end = page.through_revision == page.head_revision  # ListChanges continues after a revision
    return "after_revision", "" if at_end else page.through_revision
