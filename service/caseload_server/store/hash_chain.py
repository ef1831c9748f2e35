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
FORMAT: Final = 2
"""The number of the format that this release writes, in the column hash_version. More content needs a new format."""
FORMAT_WITHOUT_VERSIONS: Final = 1
"""The format that has no hashes of versions of records. Servers of 0.1 write it."""
NO_HASH: Final = 0
"""Of change sets from before the chain."""
canonical_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
"""Every write encodes several values, so it leaves out the check for cycles, which rows do not have."""


def next_hash(
    previous: bytes,
    revision: int,
    columns: Sequence[Value],
    changes: Sequence[Sequence[Value]],
    hash_format: int = FORMAT,
) -> bytes:
    """Returns the hash of a change set: BLAKE2b-256 (RFC 7693) of the previous hash and the canonical form.

    The canonical form is a JSON array (RFC 8785). The store's id is not part of it, because a restore changes the id.

    Args: previous, the hash of the change set before it; columns, its committed_us, actor, on_behalf_of, method and
    request_id, in this order; changes, the columns of each change without its position; hash_format, a number.
    """
    content = canonical_json([hash_format, revision, *columns, changes])
    return hashlib.blake2b(previous + content.encode(), digest_size=HASH_BYTES).digest()
