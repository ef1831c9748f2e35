"""The fixed limits and lifetimes of the server. `config` has those that an operator can change.

The comments of the contract promise some of these sizes too, and a test compares the two.
"""

from typing import Final

# Requests

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Largest request message, in bytes."""
MAX_METADATA_BYTES: Final = 16 * 1024
"""Largest metadata of a call, in bytes."""
MAX_BATCH_SIZE: Final = 100
"""Largest number of ids in a BatchGet request, and of pairs in a CheckAssignments request."""
MAX_MASK_PATHS: Final = 100
"""Largest number of paths in an update_mask."""
MAX_FILTER_VALUES: Final = 100
"""Largest number of values of one enumeration in a filter."""
MAX_ASSIGNMENTS_PER_CALL: Final = 1000
"""Largest number of assignments that one transfer or forced delete changes."""

# Records

MAX_RECORD_BYTES: Final = 32 * 1024
"""Largest therapist or patient, in bytes as a message."""
MAX_IDENTIFIERS: Final = 20
"""Largest number of identifiers of a record."""
MAX_SPECIALTIES: Final = 20
"""Largest number of specialties of a therapist, and in a filter."""
MAX_ANNOTATIONS: Final = 32
"""Largest number of annotations of a record."""

# Pages

DEFAULT_PAGE_SIZE: Final = 50
"""Records on a page when the request does not set page_size."""
MAX_PAGE_SIZE: Final = 1000
"""Largest number of records on a page. The server reduces a larger page_size to it."""
MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
"""Largest size of a page's records, in bytes. The page ends before the record that would exceed it."""

# Idempotency and the change log

IDEMPOTENCY_TTL_US: Final = 24 * 3600 * 1_000_000
"""How long the server remembers a request_id, in microseconds."""
MAX_CHANGES_PER_SET: Final = 3 * MAX_ASSIGNMENTS_PER_CALL + 1
"""Largest number of changes in a change set. A transfer can end two periods for each period that it begins."""

# Watches

HEARTBEAT_SECONDS: Final = 20.0
"""A watch sends a message at least this often, in seconds."""
SLOW_READER_SECONDS: Final = 10.0
"""A watch ends with WATCH_TOO_SLOW when its reader takes longer than this for one message, in seconds."""
STUCK_READER_SECONDS: Final = 30.0
"""A watch is cancelled when its reader takes nothing for this long, in seconds. No status would reach the reader."""
MAX_WATCH_MESSAGE_SETS: Final = 100
"""Largest number of change sets in one message of a watch."""
MAX_WATCH_MESSAGE_BYTES: Final = 128 * 1024
"""Approximate largest size of one message of a watch, in bytes. A change set is never split."""

# Connections

HANDSHAKE_TIMEOUT_MS: Final = 10_000
"""A new connection must finish TLS and send its first frame within this time, in milliseconds."""
MAX_CONNECTION_IDLE_MS: Final = 600_000
"""The server closes a connection without calls after this time, in milliseconds."""
KEEPALIVE_INTERVAL_MS: Final = 60_000
"""The server pings a silent connection after this time, in milliseconds, and closes it without an answer in 20 s."""
MIN_PING_INTERVAL_MS: Final = 5_000
"""Least time between two pings of a caller, in milliseconds. The third earlier ping closes the connection."""
MAX_HEALTH_WATCHES: Final = 256
"""Largest number of open grpc.health.v1.Health/Watch calls in one process."""
MAX_REFLECTION_STREAMS: Final = 32
"""Largest number of open reflection streams in one process."""
RESERVED_FILES: Final = 400
"""File descriptors kept free for the database (two or three for each thread) and the logs."""

# Logs

MAX_LOGGED_IDS: Final = 1000
"""Largest number of ids of one kind in a line of the access log."""
