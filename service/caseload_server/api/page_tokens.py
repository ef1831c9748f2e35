"""Page tokens: the position in a list, signed and bound to the request (AIP-158, https://google.aip.dev/158)."""

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import Message

from caseload_server.domain import errors
from caseload_server.domain.requests import PageRequest
from caseload_server.validation import rules

_MAC_BYTES: Final = 16
_REQUEST_HASH_BYTES: Final = 8
_SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)
"""Each key encrypts one token, so the nonce need not differ."""
_BLOCK_BYTES: Final = 64
"""A position is padded to a multiple of this, so that a token does not show the length of a name."""

_Position = tuple[bytes, str, str | int]
"""The hash of the request, the id of the last record, and its sort key."""


class PageTokens:
    """Issues and parses page tokens. A token is the base64url encoding of its parts.

    - In a list that is ordered by id: a MAC, a keyed hash of the request, and the last id of the page.
    - In other lists: a salt, a keyed hash of the request, and the sort key and id of the last record, encrypted with
      AES-GCM. The key for it is derived from the secret and the salt. The sort key may be the name of a person.

    It holds nothing else about a person.
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
        request_hash, after, after_key = self._verify(token) or self._decrypt(token)
        if request_hash != self._request_hash(request):
            raise errors.PageTokenMismatch
        return PageRequest(size, after, after_key)

    def issue(self, request: Message, after: str, after_key: str | int = "") -> str:
        """Returns the token of the page that starts after a record. An empty `after` means no next page, and no token.

        Args: after, its id; after_key, its sort key, if the list is not ordered by id.
        """
        if not after:
            return ""
        request_hash = self._request_hash(request)
        if after_key != "":
            position = json.dumps([after, after_key], ensure_ascii=False).encode()
            return _encode(self._encrypt(request_hash, position))
        body = request_hash + after.encode()
        return _encode(self._mac(body) + body)

    def _verify(self, token: bytes) -> _Position | None:
        """Returns the position of a token with a MAC, or None if it is no such token."""
        mac, body = token[:_MAC_BYTES], token[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
            return None
        return body[:_REQUEST_HASH_BYTES], body[_REQUEST_HASH_BYTES:].decode(), ""

    def _encrypt(self, request_hash: bytes, position: bytes) -> bytes:
        salt = secrets.token_bytes(_SALT_BYTES)
        padded = position.ljust(-(-len(position) // _BLOCK_BYTES) * _BLOCK_BYTES)
        return salt + request_hash + self._cipher(salt).encrypt(_NONCE, padded, request_hash)

    def _decrypt(self, token: bytes) -> _Position:
        """Returns the position of an encrypted token. Raises PageTokenInvalid."""
        salt, rest = token[:_SALT_BYTES], token[_SALT_BYTES:]
        request_hash, encrypted = rest[:_REQUEST_HASH_BYTES], rest[_REQUEST_HASH_BYTES:]
        try:
            after, after_key = json.loads(self._cipher(salt).decrypt(_NONCE, encrypted, request_hash))
        except InvalidTag:
            raise errors.PageTokenInvalid from None
        return request_hash, after, after_key

    def _cipher(self, salt: bytes) -> AESGCM:
        key = hashlib.blake2b(key=self._secret, salt=salt, digest_size=32, person=b"page token key").digest()
        return AESGCM(key)

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
