"""Every limit and lifetime that an operator or a reader looks for. Settings that can be changed are in `config`.

Sizes that the contract promises are said in its comments too; a test compares the two.
"""

from typing import Final

# Requests

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Size of a request message, in bytes."""
MAX_METADATA_BYTES: Final = 16 * 1024
"""Size of a call's metadata, in bytes."""
MAX_BATCH_SIZE: Final = 100
"""Ids in a BatchGet request, and pairs in a CheckAssignments request."""
MAX_MASK_PATHS: Final = 100
"""Paths in an update_mask."""
MAX_FILTER_VALUES: Final = 100
"""Values of an enumeration in a filter."""
MAX_ASSIGNMENTS_PER_CALL: Final = 1000
"""Assignments that one transfer or forced delete changes."""

# Records

MAX_RECORD_BYTES: Final = 32 * 1024
"""Size of a therapist or patient as a message, in bytes."""
MAX_IDENTIFIERS: Final = 20
MAX_SPECIALTIES: Final = 20
MAX_ANNOTATIONS: Final = 32

# Pages

DEFAULT_PAGE_SIZE: Final = 50
"""Records on a page where the request names no page_size."""
MAX_PAGE_SIZE: Final = 1000
"""Records on a page; a larger page_size is cut down to it."""
MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
"""Size of a page's records, in bytes: the page ends before the record that would exceed it."""

# Idempotency and the change log

IDEMPOTENCY_TTL_US: Final = 24 * 3600 * 1_000_000
"""How long a request_id is remembered, in microseconds."""
MAX_CHANGES_PER_SET: Final = 3 * MAX_ASSIGNMENTS_PER_CALL + 1
"""Changes in one change set: a transfer can end two periods for each one that it begins."""

# Watches

HEARTBEAT_SECONDS: Final = 20.0
"""A watch sends a message at least this often."""
SLOW_READER_SECONDS: Final = 10.0
"""A watch whose reader takes longer for one message ends with WATCH_TOO_SLOW."""
STUCK_READER_SECONDS: Final = 30.0
"""A watch whose reader takes nothing for this long is cancelled, because no status would reach the reader."""
MAX_WATCH_MESSAGE_SETS: Final = 100
"""Change sets in one message of a watch."""
MAX_WATCH_MESSAGE_BYTES: Final = 128 * 1024
"""Approximate size of one message of a watch, in bytes. A change set is never split."""

# Connections

HANDSHAKE_TIMEOUT_MS: Final = 10_000
"""A new connection must finish TLS and send its first frame within this time, in milliseconds."""
MAX_CONNECTION_IDLE_MS: Final = 600_000
"""A connection without a call is closed after this time, in milliseconds."""
KEEPALIVE_INTERVAL_MS: Final = 60_000
"""A silent connection is pinged after this time, in milliseconds. It is closed without an answer in 20 seconds."""
MIN_PING_INTERVAL_MS: Final = 5_000
"""Callers may ping this often, in milliseconds. The third ping that comes sooner ends the connection."""
MAX_HEALTH_WATCHES: Final = 256
"""Open calls of grpc.health.v1.Health/Watch in one process."""
MAX_REFLECTION_STREAMS: Final = 32
"""Open reflection streams in one process."""
RESERVED_FILES: Final = 400
"""File descriptors that connections may not take: the database and the logs need them."""

# Logs

MAX_LOGGED_IDS: Final = 1000
"""Ids of one kind in a line of the access log."""
