"""The limit on open files of this process: each connection takes a file descriptor."""

import resource
from typing import Final

from caseload_server.config import Config, SettingError, is_postgres
from caseload_server.domain import limits

_REMEDY: Final = "run ulimit -n 65536 first, as root, or set LimitNOFILE=65536 in its systemd unit"


def raise_limit() -> None:
    """Raises the soft limit on open files to the hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections(config: Config) -> int:
    """Returns how many client connections the process can have. Raises SettingError if the settings need more files.

    The settings need a connection for each watch, and some for other calls.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    reserved = limits.RESERVED_FILES + (2 * config.pool_size if is_postgres(config.database) else 0)
    needed = reserved + config.max_watches + limits.MIN_CONNECTIONS
    if allowed < needed:
        raise SettingError(
            "ulimit -n",
            f"{allowed} open files are allowed, and {needed} are needed: {reserved} for the database and the logs, "
            f"{config.max_watches} for watches (--max-watches), {limits.MIN_CONNECTIONS} for calls; {_REMEDY}",
        )
    return min(config.max_connections, allowed - reserved)
