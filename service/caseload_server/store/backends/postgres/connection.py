"""Opens connections to PostgreSQL with the settings that the store relies on.

https://www.postgresql.org/docs/current/libpq-connect.html, https://www.psycopg.org/psycopg3/docs/
"""

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryDumper

from caseload_server.store.backends.protocol import Row

Connection = psycopg.Connection[Row]

_CONNECTION_DEFAULTS: Final = {
    "application_name": "caseload",
    "client_encoding": "utf8",
    "connect_timeout": "2",  # seconds, for each host
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",  # milliseconds without an acknowledgement until the connection is dropped
    "target_session_attrs": "read-write",  # of several hosts, the primary
}
_SESSION_OPTIONS: Final = (
    "-c statement_timeout=0 -c lock_timeout=3s -c idle_in_transaction_session_timeout=10s -c synchronous_commit=on"
    " -c default_transaction_isolation=read\\ committed"
)


def connect(url: str, session_options: str = "") -> Connection:
    """Opens a connection in autocommit mode. Raises psycopg.Error.

    Args: url, as libpq takes it, whose settings override the defaults; session_options, more of them for the server
    ("-c name=value").
    """
    given = conninfo_to_dict(url)
    if any(map(_is_remote, str(given.get("hostaddr") or given.get("host") or "").split(","))):
        given.setdefault("sslmode", "require")  # libpq's default would fall back to plain text
    options = f"{_SESSION_OPTIONS}{session_options} {given.pop('options', None) or ''}"
    settings: dict[str, Any] = {**_CONNECTION_DEFAULTS, **given, "options": options}
    connection = psycopg.connect(make_conninfo(**settings), autocommit=True, prepare_threshold=1)
    connection.prepared_max = 500
    connection.adapters.register_dumper(int, Int8BinaryDumper)  # else integers of three sizes make three statements
    return connection


def _is_remote(host: str) -> bool:
    """Returns whether a host is on another machine: neither a socket nor loopback."""
    return not (host in {"", "localhost", "::1"} or host.startswith(("/", "@", "127.")))
