"""Parses the bytes of a request, or rejects them with INVALID_FIELD."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from caseload_server.domain.errors import InvalidField, Violation

Request = TypeVar("Request")


def request_parser(parse: Callable[[bytes], Request], max_bytes: int) -> Callable[[bytes], Request]:
    """Returns the parser for the requests of one method. It raises InvalidField.

    Args: parse, parses the bytes of the request's message type; max_bytes, the size above which it does not parse them.
    """

    def parse_request(data: bytes) -> Request:
        if len(data) > max_bytes:
            raise InvalidField(Violation("", f"must have at most {max_bytes} bytes"))
        try:
            return parse(data)
        except DecodeError:
            raise InvalidField(Violation("", "does not parse as this method's request message")) from None

    return parse_request
