"""Page tokens: where a list goes on, signed, and bound to the request they were made for (AIP-158)."""

import base64
import hashlib
import hmac
from typing import Any, Final

from google.protobuf.message import Message

from caseload_server.domain import errors
from caseload_server.domain.requests import PageRequest
from caseload_server.validation import rules

_MAC_BYTES: Final = 16
_SCOPE_BYTES: Final = 8


class PageTokens:
    """Makes and reads page tokens.

    A token is base64url of a MAC, a keyed hash of the request's other fields, and the last id of the page: nothing
    of a patient but the id.
    """

    def __init__(self, secret: bytes) -> None:
        """Args: secret, the store's, so that a token outlives a restart."""
        self._secret = secret

    def read(self, request: Any) -> PageRequest:
        """Which page a request asks for. Raises InvalidField, PageTokenInvalid, PageTokenMismatch."""
        size = rules.page_size(request.page_size)
        if not request.page_token:
            return PageRequest(size, "")
        token = _decoded(request.page_token)
        mac, scope, after = token[:_MAC_BYTES], token[_MAC_BYTES:][:_SCOPE_BYTES], token[_MAC_BYTES + _SCOPE_BYTES :]
        if not hmac.compare_digest(mac, self._mac(scope + after)):
            raise errors.PageTokenInvalid
        if scope != self._scope(request):
            raise errors.PageTokenMismatch
        return PageRequest(size, after.decode())

    def make(self, request: Message, after: str) -> str:
        """The token of the page after this id; none after the last page."""
        if not after:
            return ""
        body = self._scope(request) + after.encode()
        return _encoded(self._mac(body) + body)

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._secret, digest_size=_MAC_BYTES, person=b"page token").digest()

    def _scope(self, request: Message) -> bytes:
        """What must stay the same from page to page: the request without page_size and page_token."""
        rest = type(request)()
        rest.CopyFrom(request)
        rest.ClearField("page_size")
        rest.ClearField("page_token")
        body = rest.DESCRIPTOR.name.encode() + rest.SerializeToString(deterministic=True)
        return hashlib.blake2b(body, key=self._secret, digest_size=_SCOPE_BYTES, person=b"page scope").digest()


def _encoded(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    """The bytes of a token, where it is their one encoding. Raises PageTokenInvalid."""
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")
    except ValueError:  # binascii.Error, and text that is not ASCII
        raise errors.PageTokenInvalid from None
    if _encoded(token) != text:
        raise errors.PageTokenInvalid
    return token
