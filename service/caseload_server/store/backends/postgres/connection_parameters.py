"""Finds the parameters of a connection: from the URL, else the service file, the environment, or this module.

https://www.postgresql.org/docs/current/libpq-connect.html
"""

import os
import re
from ipaddress import ip_address
from itertools import zip_longest
from typing import Final

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_DEFAULTS: Final = {
    "application_name": "caseload",
    "connect_timeout": "2",  # seconds, for each host
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",  # milliseconds without an acknowledgement until the connection is dropped
    "target_session_attrs": "read-write",  # of several hosts, the primary
}
_RESOLVED_HERE: Final = ("host", "hostaddr", "port")
"""psycopg must see these to apply connect_timeout to each host. It does not read a service file."""
_OPTION: Final = re.compile(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=((?:\\.|\S)*)")
"""One setting in the parameter `options`: https://www.postgresql.org/docs/current/libpq-connect.html"""


def effective_parameters(url: str) -> dict[str, str]:
    """Returns the parameters that the URL, its service file or the environment set. Connects to nothing.

    A value in a service file that equals libpq's default counts as not set, because libpq does not distinguish the two.
    Raises psycopg.ProgrammingError for a malformed URL.
    """
    given = conninfo_to_dict(url)
    # libpq merges its sources, then rejects this invalid value, so it opens no socket.
    probe = pq.PGconn.connect_start(make_conninfo(url, channel_binding="none, only a probe").encode())
    merged = [option for option in probe.info if option.keyword != b"channel_binding"]
    probe.finish()
    return {
        option.keyword.decode(): option.val.decode()
        for option in merged
        if option.val and (option.keyword.decode() in given or _in_environment(option) or option.val != option.compiled)
    }


def _in_environment(option: pq.ConninfoOption) -> bool:
    return option.envvar is not None and option.envvar.decode() in os.environ


def complete_conninfo(url: str, effective: dict[str, str]) -> str:
    """Returns the URL with a default for each parameter that is not set.

    A remote host needs TLS unless sslmode is set, because libpq's own default can fall back to plain text. Args:
    effective, the result of `effective_parameters`.
    """
    tls = {"sslmode": "require"} if has_remote_host(effective) else {}
    chosen = {name: effective.get(name, default) for name, default in (_DEFAULTS | tls).items()}
    resolved = {name: effective[name] for name in _RESOLVED_HERE if name in effective}
    return make_conninfo(url, **resolved, **chosen, client_encoding="utf8")


def has_remote_host(effective: dict[str, str]) -> bool:
    """Returns whether libpq may connect to another machine. Args: effective, of `effective_parameters`."""
    return any(map(is_remote, _hosts(effective)))


def _hosts(effective: dict[str, str]) -> list[str]:
    """Returns the hosts that libpq connects to: the address of each, or its name if it has no address."""
    pairs = zip_longest(effective.get("hostaddr", "").split(","), effective.get("host", "").split(","), fillvalue="")
    return [address or host for address, host in pairs]


def is_remote(host: str) -> bool:
    """Returns whether a host is on another machine: neither a socket nor loopback."""
    if host in {"", "localhost"} or host.startswith(("/", "@")):
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:  # a name, such as 127.db.example, may lead anywhere
        return True


def session_options(effective: dict[str, str]) -> dict[str, str]:
    """Returns the settings in the parameter `options`, as in `-c lock_timeout=1s`, by their lower-case names."""
    settings = _OPTION.findall(effective.get("options", ""))
    return {name.lower().replace("-", "_"): re.sub(r"\\(.)", r"\1", value) for name, value in settings}
