"""Iterators over the pages of a list, for asyncio."""

from collections.abc import AsyncIterator, Awaitable, Callable

from caseload.client.pages import Page, Request, request_after


async def pages(method: Callable[[Request], Awaitable[Page]], request: Request) -> AsyncIterator[Page]:
    """Yields the pages of a list. It requests a page when you ask for it, and not earlier.

    Args:
        method: a List method, such as caseload.therapists.ListTherapists. For a deadline or metadata of each call, pass
            functools.partial(method, timeout=3).
        request: the request of the first page, which is not changed. Its page_size is the largest size of each page.

    Raises grpc.aio.AioRpcError if a call fails, and ValueError if the method does not return pages
    (https://google.aip.dev/158).
    """
    following: Request | None = request
    while following is not None:
        page = await method(following)
        yield page
        following = request_after(following, page)
