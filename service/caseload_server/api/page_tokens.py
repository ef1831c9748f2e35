"""Page tokens: the position in a list, signed and bound to the request (AIP-158, https://google.aip.dev/158)."""

import base64
import hashlib
import hmac
from typing import Any, Final

from google.protobuf.message import Message

from caseload_server.domain import errors
from caseload_server.domain.requests import PageRequest
from caseload_server.validation import rules

_MAC_BYTES: Final = 16
_REQUEST_HASH_BYTES: Final = 8


class PageTokens:
    """Issues and parses page tokens.

    A token is the base64url encoding of three parts: a MAC, a keyed hash of the request, and the last id of the page.
    It holds nothing else about a patient.
    """

    def __init__(self, secret: bytes) -> None:
        """Args: secret, of the store, so that tokens stay valid after a restart."""
        self._secret = secret

    def parse(self, request: Any) -> PageRequest:
        """Returns the page that a request asks for. Raises InvalidField, PageTokenInvalid, PageTokenMismatch."""
        size = rules.page_size(request.page_size)
        if not request.page_token:
            return PageRequest(size, "")
        token = _decode(request.page_token)
        mac, body = token[:_MAC_BYTES], token[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise errors.PageTokenInvalid
        request_hash, after = body[:_REQUEST_HASH_BYTES], body[_REQUEST_HASH_BYTES:]
        if request_hash != self._request_hash(request):
            raise errors.PageTokenMismatch
        return PageRequest(size, after.decode())

    def issue(self, request: Message, after: str) -> str:
        """Returns the token of the page that starts after an id. An empty `after` means no next page, and no token."""
        if not after:
            return ""
        body = self._request_hash(request) + after.encode()
        return _encode(self._mac(body) + body)

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._secret, digest_size=_MAC_BYTES, person=b"page token").digest()

    def _request_hash(self, request: Message) -> bytes:
        """Hashes what must not change from page to page: the request without page_size and page_token."""
        copy = type(request)()
        copy.CopyFrom(request)
        copy.ClearField("page_size")
        copy.ClearField("page_token")
        body = copy.DESCRIPTOR.name.encode() + copy.SerializeToString(deterministic=True)
        return hashlib.blake2b(body, key=self._secret, digest_size=_REQUEST_HASH_BYTES, person=b"page scope").digest()


def _encode(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Returns the bytes of a token. Raises PageTokenInvalid, also when the text is not their canonical encoding."""
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")
    except ValueError:  # binascii.Error, or text that is not ASCII
        raise errors.PageTokenInvalid from None
    if _encode(token) != text:
        raise errors.PageTokenInvalid
    return token
