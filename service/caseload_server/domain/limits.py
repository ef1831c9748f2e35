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
"""Largest number of ids in a BatchGet request, of pairs in a CheckAssignments request, and of entries in a batch."""
MAX_MASK_PATHS: Final = 100
"""Largest number of paths in an update_mask."""
MAX_FILTER_VALUES: Final = 100
"""Largest number of values of one enumeration in a filter."""
MAX_ASSIGNMENTS_PER_CALL: Final = 1000
"""Largest number of assignments that one transfer, or one update or delete with force, changes."""

MAX_READ_SECONDS: Final = 10.0
"""Longest time of the reads of a call, in seconds. They end earlier if the call's deadline passes. PostgreSQL ends a
statement in progress by its own `statement_timeout`."""

EARLIEST_TIME_US: Final = -2_208_988_800_000_000
"""Earliest time that a request may name, in microseconds since 1970 (UTC): 1900-01-01T00:00:00Z. The zero times of Go
and C#, in the year 1, are earlier."""
CLOCK_TOLERANCE_US: Final = 60 * 1_000_000
"""How far ahead of the server's clock a time in a request may lie, in microseconds, because clocks differ."""

EARLIEST_BIRTH_YEAR: Final = 1850
"""Earliest year of a birth date that a request may name. Stored dates may be older."""

# Records

MAX_RECORD_BYTES: Final = 32 * 1024
"""Largest therapist or patient, in bytes as a message."""
MAX_IDENTIFIERS: Final = 20
"""Largest number of identifiers of a record."""
MAX_ALIASES: Final = 10
"""Largest number of aliases of a record."""
MAX_KEY_LENGTH: Final = 400
"""Longest key of an identifier or a name, in characters, so that PostgreSQL can index it."""
MAX_MERGED_PATIENTS: Final = 100
"""Largest number of patients that are records of one person."""
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
"""A call is cancelled when its caller does not read a response for this long, in seconds. No status would arrive."""
MAX_WATCH_MESSAGE_SETS: Final = 100
"""Largest number of change sets in one message of a watch."""
MAX_WATCH_MESSAGE_BYTES: Final = 128 * 1024
"""Approximate largest size of one message of a watch, in bytes. A change set is never split."""

# Connections

HANDSHAKE_TIMEOUT_MS: Final = 10_000
"""A new connection must finish TLS and send its first frame within this time, in milliseconds."""
MAX_CONNECTION_IDLE_MS: Final = 600_000
"""The server closes a connection without calls after this time, in milliseconds."""
CONNECTION_AGE_GRACE_SECONDS: Final = 60.0
"""Calls on a connection that has reached its age may take the longest age of a watch plus this time, in seconds."""
KEEPALIVE_INTERVAL_MS: Final = 60_000
"""The server pings a silent connection after this time, in milliseconds, and closes it without an answer in 20 s."""
MIN_PING_INTERVAL_MS: Final = 5_000
"""Least time between two pings of a caller, in milliseconds. The third earlier ping closes the connection."""
MAX_CALLS_PER_CONNECTION: Final = 100
"""Largest number of calls on one connection at once, beside the watches."""
MAX_HEALTH_WATCHES: Final = 256
"""Largest number of open grpc.health.v1.Health/Watch calls in one process."""
MAX_REFLECTION_STREAMS: Final = 32
"""Largest number of open reflection streams in one process."""
RESERVED_FILES: Final = 400
"""File descriptors reserved for the database (two or three for each thread) and the logs."""
MIN_CONNECTIONS: Final = 100
"""The server does not start if it can have fewer connections than this plus one for each watch."""

# Open calls of one process. One principal may have its share of each limit (`max_caller_share`).

MAX_OPEN_CALLS: Final = 2000
"""Largest number of open calls: those that arrive, wait or run, and those whose response is unread."""
MAX_OPEN_PUBLIC_CALLS: Final = 500
"""Largest number of open calls without credentials, which are health checks and health watches."""
MAX_CALLS_RECEIVING: Final = 64
"""Largest number of calls whose message is arriving."""
MAX_PUBLIC_CALLS_RECEIVING: Final = 48
"""Largest number of calls without credentials whose message is arriving."""
LOOKAHEAD_BYTES: Final = 16 * 1024
"""The flow-control window of a call until the server asks for its message, in bytes."""
MESSAGE_TIMEOUT_SECONDS: Final = 10.0
"""A call is rejected when its message has not arrived this long after its headers, in seconds."""
STREAM_IDLE_SECONDS: Final = 60.0
"""A stream of requests is cancelled when the next one has not arrived after this time, in seconds."""
MAX_QUEUED_BYTES: Final = 16 * 1024 * 1024
"""Largest size of the messages that wait for a thread of one class of calls, in bytes."""
MAX_UNTAKEN_BYTES: Final = 40 * 1024 * 1024
"""Largest size of all unread responses together, in bytes. Small responses do not count."""
MAX_CONNECTION_BYTES: Final = 10 * 1024 * 1024
"""Largest size of the unread responses of one connection, in bytes."""
SMALL_ANSWER_BYTES: Final = 4 * 1024
"""Size up to which an unread response does not count, in bytes. The number of open calls limits those."""
BULK_WRITE_THREADS: Final = 4
"""Number of batches, transfers, merges and deletes that run at once. Each may change many assignments."""

# Logs

MAX_ANONYMOUS_LINES: Final = 100
"""Largest number of lines of the access log in a second, for each status code, from unauthenticated calls."""
MAX_LOGGED_IDS: Final = 1000
"""Largest number of ids of one kind in a line of the access log."""

TOKEN_LEEWAY_SECONDS: Final = 60
"""How far the clocks of the server and of an identity provider may differ."""
ISSUER_REFRESH_SECONDS: Final = 300.0
"""How often the keys of an identity provider are fetched."""
ISSUER_RETRY_SECONDS: Final = 10.0
"""The pause after a failed fetch, or before tokens with unknown keys can cause another one."""
MAX_WAITING_FOR_ISSUER: Final = 100
"""Largest number of calls that wait for the keys of an identity provider, because their token names an unknown key."""
ISSUER_OUTAGE_SECONDS: Final = 3600.0
"""How long the keys stay in use while the identity provider does not answer."""
