"""Opens connections to PostgreSQL with the settings that the store relies on.

https://www.postgresql.org/docs/current/runtime-config-client.html, https://www.psycopg.org/psycopg3/docs/
"""

import re
from contextlib import closing
from typing import Final, NamedTuple

import psycopg
from psycopg.types.numeric import Int8BinaryDumper

from caseload_server.store.backends.postgres.connection_parameters import (
    complete_conninfo,
    effective_parameters,
    has_remote_host,
    is_remote,
    session_options,
)
from caseload_server.store.backends.protocol import Row

Connection = psycopg.Connection[Row]


class SessionSettings(NamedTuple):
    """The settings of a session, by name."""

    defaults: dict[str, str]
    """Apply unless the parameter `options` sets them."""
    fixed: dict[str, str]
    """Apply always, whatever the role, the database or the URL sets, because the store is correct only with them."""


_FIXED: Final = {
    "client_encoding": "UTF8",
    "client_min_messages": "warning",  # a warning is sent when a commit did not wait for its standby
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "idle_session_timeout": "0",
    "row_security": "off",  # a query that would miss rows fails instead
    "standard_conforming_strings": "on",
}
_STRONGER_COMMIT: Final = "remote_apply"
"""The only value of synchronous_commit that waits for more than `on` does.
https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-SYNCHRONOUS-COMMIT"""
_TRANSACTION_TIMEOUT: Final = 17
"""The major version of PostgreSQL that adds the setting transaction_timeout."""
_TIMEOUTS: Final = {"idle_in_transaction_session_timeout": "10s", "lock_timeout": "3s"}
_CHANGEABLE: Final = {**_TIMEOUTS, "jit": "off"}
"""Compiling a statement takes longer than any of them saves by it: half a second for a page that takes milliseconds."""
WRITES: Final = SessionSettings(_CHANGEABLE, {**_FIXED, "statement_timeout": "0"})
"""A statement timeout would end a COMMIT's wait for its standby, and show data that can still be lost."""
READS: Final = SessionSettings({**_CHANGEABLE, "statement_timeout": "10s"}, _FIXED)
WITHOUT_TIMEOUTS: Final = SessionSettings(
    {"lock_timeout": "3s"}, {**_FIXED, "statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
)
"""For exports and imports, whose transactions are long and may wait for standard input or output."""

_REQUIRED: Final = {"session_replication_role": "origin"}
"""Only a superuser can set it. With another value triggers and foreign keys do nothing."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_POOLING_CHECKS: Final = 5
"""Number of transactions on each of two connections in the check for transaction pooling."""


class SessionRefused(psycopg.OperationalError):
    """The connection works, but lacks a property that the store needs. The text names it, and quotes no secret."""


def connect(url: str, settings: SessionSettings = WRITES, *, refuses_pooling: bool = False) -> Connection:
    """Opens a connection in autocommit mode.

    The settings are set by statements and then verified: poolers such as PgBouncer reject the parameter `options`, or
    ignore it. Raises SessionRefused, psycopg.Error.

    Args: url, as libpq takes it; refuses_pooling, whether to raise SessionRefused if a pooler shares sessions between
    connections.
    """
    effective = effective_parameters(url)
    connection = _open(url, effective)
    options = session_options(effective)
    try:
        if refuses_pooling:
            _refuse_transaction_pooling(connection, url, effective)
        commit = _synchronous_commit(connection, options)
        _apply(connection, {**settings.defaults, **options, **settings.fixed, "synchronous_commit": commit})
    except BaseException:
        connection.close()
        raise
    return connection


def _open(url: str, effective: dict[str, str]) -> Connection:
    for name, value in effective.items():
        if _CONTROL.search(value):
            raise SessionRefused(f"the parameter {name} contains a line end or another control character")
    connection = psycopg.connect(complete_conninfo(url, effective), autocommit=True, prepare_threshold=1)
    connection.prepared_max = 500
    # Otherwise integers of three sizes would need three prepared statements.
    connection.adapters.register_dumper(int, Int8BinaryDumper)
    encrypted = connection.pgconn.ssl_in_use or has_remote_host(effective)  # libpq has required TLS for these
    if not encrypted and "sslmode" not in effective and is_remote(connection.info.hostaddr):
        connection.close()
        raise SessionRefused("the host is another machine, and the connection has no TLS: set sslmode=require")
    return connection


def _synchronous_commit(connection: Connection, options: dict[str, str]) -> str:
    """Returns `on`, or what the operator set where that is stronger. Args: options, which a pooler may ignore."""
    [default] = _call(connection, "current_setting(%s)", ("synchronous_commit",))
    asked: str = options.get("synchronous_commit") or default
    return _STRONGER_COMMIT if asked.lower() == _STRONGER_COMMIT else "on"


def _apply(connection: Connection, settings: dict[str, str]) -> None:
    """Sets the settings and verifies them in another transaction. Raises SessionRefused."""
    if connection.info.server_version >= _TRANSACTION_TIMEOUT * 10_000:
        settings = {**settings, "transaction_timeout": "0"}
    values = _call(connection, "set_config(%s, %s, false)", *settings.items())
    expected = dict(zip(settings, values, strict=True)) | _REQUIRED
    found = _call(connection, "current_setting(%s)", *((name,) for name in expected))
    for (name, value), kept in zip(expected.items(), found, strict=True):
        if kept != value:
            raise SessionRefused(f"the session does not keep the setting {name} = {value}")


def _call(connection: Connection, function: str, *arguments: tuple[str, ...]) -> Row:
    """Calls a function once for each tuple of arguments, in one statement. Reading pg_settings takes twice as long."""
    sql = f"SELECT {', '.join([function] * len(arguments))}"
    [row] = connection.execute(sql.encode(), [value for one in arguments for value in one], prepare=False).fetchall()
    return row


def _refuse_transaction_pooling(one: Connection, url: str, effective: dict[str, str]) -> None:
    """Raises SessionRefused if another connection may get the session of this one. Raises psycopg.Error.

    Settings, prepared statements, LISTEN and locks belong to a session.
    https://www.pgbouncer.org/features.html
    """
    if one.info.backend_pid == _session(one):  # a pooler reports a process id of its own
        return
    with closing(_open(url, effective)) as other:
        sessions = [(_session(one), _session(other)) for _ in range(_POOLING_CHECKS)]
    if len(set(sessions)) > 1 or sessions[0][0] == sessions[0][1]:
        raise SessionRefused("the pooler shares sessions between connections: use session pooling, not transaction")


def _session(connection: Connection) -> int:
    """Returns the process id of the server process that runs the statements of a connection."""
    [(pid,)] = connection.execute(b"SELECT pg_backend_pid()", prepare=False).fetchall()
    return int(pid)
