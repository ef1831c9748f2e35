"""The identity of a store, and the secret that it signs with."""

import hashlib
from typing import Final, NamedTuple

from caseload_server.domain import errors
from caseload_server.domain.requests import CallContext

FINGERPRINT_BYTES: Final = 16
"""Length of a request's fingerprint."""


class StoreKeys(NamedTuple):
    """The id and the secret of a store."""

    store_id: str
    secret: bytes

    def revision(self, number: int) -> str:
        """Returns a revision as callers see it: opaque, and rejected by every other store."""
        return f"{self.store_id}.{number}"

    def number(self, revision: str) -> int:
        """Returns the number of a revision of this store. Raises RevisionForeign."""
        store_id, _, number = revision.partition(".")
        if store_id != self.store_id or not (number.isascii() and number.isdigit() and len(number) < 19):
            raise errors.RevisionForeign
        return int(number)

    def fingerprint(self, call: CallContext) -> bytes:
        """Returns a keyed hash of the request. It is stored for 24 hours and discloses nothing of the request."""
        return hashlib.blake2b(call.fingerprint, key=self.secret, digest_size=FINGERPRINT_BYTES).digest()
