"""The hash chain over the change log: each change set has a hash of its content and of the hash before it.

docs/operations/change-log.md documents the canonical form, so that others can compute the hashes too.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Final

from caseload_server.store.backends.protocol import Value

HASH_BYTES: Final = 32
START: Final = bytes(HASH_BYTES)
"""Stands for the hash before the first change set of a chain."""
VERSION: Final = 1
"""The version of the canonical form. A form with more content gets another version, and the old one stays readable."""
BEFORE_CHAIN: Final = 0
"""The version of change sets that are older than the chain. They have no hash."""
_canonical_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def next_hash(previous: bytes, revision: int, columns: Sequence[Value], changes: Sequence[Sequence[Value]]) -> bytes:
    """Returns the hash of a change set: BLAKE2b-256 (RFC 7693) of the previous hash and the canonical form.

    The form is a JSON array in the form of RFC 8785. The store's id is no part of it, because a restore changes it.

    Args: previous, the hash of the change set before; columns, committed_us, actor, on_behalf_of, method and
    request_id; changes, the columns of each change after its position.
    """
    content = _canonical_json([VERSION, revision, *columns, changes])
    return hashlib.blake2b(previous + content.encode(), digest_size=HASH_BYTES).digest()
