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
VERSION: Final = 2
"""The version of the canonical form. A form with more content needs a new version. Old versions stay readable."""
WITHOUT_VERSIONS: Final = 1
"""The version of the form that has no hashes of versions. Servers of 0.1 write it."""
BEFORE_CHAIN: Final = 0
"""The version of change sets from before the chain. They have no hash."""
canonical_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def next_hash(
    previous: bytes,
    revision: int,
    columns: Sequence[Value],
    changes: Sequence[Sequence[Value]],
    version: int = VERSION,
) -> bytes:
    """Returns the hash of a change set: BLAKE2b-256 (RFC 7693) of the previous hash and the canonical form.

    The canonical form is a JSON array (RFC 8785). The store's id is not part of it, because a restore changes the id.

    Args: previous, the hash of the change set before it; columns, its committed_us, actor, on_behalf_of, method and
    request_id, in this order; changes, the columns of each change without its position; version, of the canonical form.
    """
    content = canonical_json([version, revision, *columns, changes])
    return hashlib.blake2b(previous + content.encode(), digest_size=HASH_BYTES).digest()
