"""Iterators over the pages of a list, for asyncio."""

from collections.abc import AsyncIterator, Awaitable, Callable

from caseload.client.pages import Page, Request, request_after


async def pages(method: Callable[[Request], Awaitable[Page]], request: Request) -> AsyncIterator[Page]:
    """Yields each page of a list, as caseload.client.pages() does.

    Args:
        method: a method that returns pages, such as caseload.therapists.ListTherapists.
        request: the first request. It is not changed. Its page_size is the size of each page.

    Raises grpc.aio.AioRpcError, as the method does, and ValueError where its response is no page. AIP-158 describes
    pages.
    """
    following: Request | None = request
    while following is not None:
        page = await method(following)
        yield page
        following = request_after(following, page)
