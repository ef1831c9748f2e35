"""Every setting of the server, its unit and its default."""

import datetime
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")


class SettingError(Exception):
    """A setting with which the server cannot start: its name, and what is wrong; never its value."""

    def __init__(self, setting: str, text: str) -> None:
        """Args: setting, as the user writes it, such as "--database"."""
        super().__init__(f"{setting}: {text}")


@dataclass(frozen=True)
class Config:
    """The settings of `caseload serve`."""

    address: str = "127.0.0.1:50051"
    """HOST:PORT to listen on; port 0 takes a free one."""
    database: str = "sqlite:///data/caseload.db"
    """sqlite:///PATH, relative to the working folder, or with four slashes from the root; or postgresql://..."""
    workers: int = 1
    """Processes that serve, on one port."""
    worker: int | None = None
    """The number of this process from 0, where it is one of several on one port that another process has started."""
    threads: int = 64
    """Calls that write at once, none of which takes a thread of those that read. As many can share a commit."""
    read_threads: int = 16
    """Calls that read at once, and no more than `threads`. With many each costs more: they fight over the GIL."""
    max_queue_depth: int = 400
    """Calls that wait for such a thread, of either kind; one more is turned away."""
    queue_timeout_seconds: float = 1.0
    """How long a call waits at most; then, or where it is plain before, it is turned away."""
    pool_size: int = 16
    """Connections to PostgreSQL for reads, and as many for writes; readiness has another, and so have watches."""
    max_watches: int = 100
    """Watches open at once in one process."""
    max_connections: int = 10_000
    """Connections open at once to one process."""
    drain_seconds: float = 5.0
    """How long calls are still answered after readiness has gone, at a stop."""
    grace_seconds: float = 30.0
    """How long calls under way may take after that."""
    keys_file: Path | None = None
    """The callers, and the hashes of their keys; without it everyone on this machine is `local`."""
    tls_cert: Path | None = None
    """The certificate chain that is shown to callers, in PEM."""
    tls_key: Path | None = None
    """Its key, in PEM."""
    tls_client_ca: Path | None = None
    """Whose certificates callers need, in PEM; without it they need none."""
    access_log: Path | None = None
    """Where the line of each call goes; without it to standard error."""
    log_level: str = "info"
    """info, warning or error: what is less is not logged. The access log has no level."""
    metrics_address: str | None = None
    """HOST:PORT to serve the metrics at; port 0 takes a free one. Without it nothing is counted."""
    allow_insecure: bool = False
    """Listen beyond loopback without encryption and authentication."""

    def check(self) -> None:
        """Raises SettingError."""
        host = self.host_and_port()[0]
        if self.metrics_address is not None:
            host_and_port("--metrics-address", self.metrics_address)
        if not (ipaddress.ip_address(host.strip("[]")).is_loopback or self.is_secure() or self.allow_insecure):
            raise SettingError("--address", "beyond loopback needs --tls-cert and --keys-file, or --allow-insecure")
        for name, needed in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")):
            if getattr(self, name) and not getattr(self, needed):
                raise SettingError(_flag(name), f"needs {_flag(needed)}")
        if self.tls_client_ca and not self.keys_file:
            raise SettingError("--tls-client-ca", "needs --keys-file, where callers are listed")
        if self.access_log:
            _check_file_can_be(self.access_log, "--access-log")
        if not is_postgres(self.database):
            sqlite_path(self.database)

    def is_secure(self) -> bool:
        """Whether calls are encrypted and callers known."""
        return self.tls_cert is not None and self.keys_file is not None

    def host_and_port(self) -> tuple[str, int]:
        """Those of the address to listen on. Raises SettingError."""
        return host_and_port("--address", self.address)


def host_and_port(setting: str, address: str) -> tuple[str, int]:
    """The IP address, with an IPv6 one in brackets, and the port. Raises SettingError."""
    host, _, port = address.rpartition(":")
    if host == "localhost":
        host = "127.0.0.1"  # the name stands for two addresses, and grpc is content when it gets one of them
    if not (_is_ip(host) and re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536):
        raise SettingError(setting, "must be HOST:PORT, where HOST is an IP address or localhost")
    return host, int(port)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_ip(host: str) -> bool:
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        return ipaddress.ip_address(host[1:-1] if in_brackets else host).version == (6 if in_brackets else 4)
    except ValueError:
        return False


def is_postgres(database: str) -> bool:
    """Whether a database URL is of PostgreSQL, as libpq takes it."""
    return database.startswith(_POSTGRES)


def has_password(database: str) -> bool:
    """Whether a PostgreSQL URL carries a password, before its host or among its parameters."""
    if not is_postgres(database):
        return False
    rest = database.partition("://")[2]
    user = re.match("[^@/]*@", rest)  # as libpq reads it: a ? may stand before the @
    query = parse_qs(rest[user.end() if user else 0 :].partition("?")[2])
    return (user is not None and ":" in user[0]) or bool({"password", "sslpassword"} & query.keys())


def _check_file_can_be(path: Path, setting: str) -> None:
    """Before anything is made: a start that fails leaves nothing behind."""
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise SettingError(setting, "is a folder, or its folder does not exist")
    except OSError:
        raise SettingError(setting, "cannot be looked up: forbidden, or too long") from None


def sqlite_path(database: str) -> Path:
    """The file behind a database URL. Raises SettingError."""
    if not database.startswith(_SQLITE) or database == _SQLITE or "?" in database or "\0" in database:
        raise SettingError("--database", "must be sqlite:///PATH or postgresql://...")
    path = Path(database.removeprefix(_SQLITE))
    try:
        str(path).encode()  # bytes that are not UTF-8 come as lone surrogates, and SQLite takes none
        if not path.parent.is_dir():
            raise SettingError("--database", "the folder of the file does not exist")
        if path.exists() and not path.is_file():
            raise SettingError("--database", "is not a file")
    except (OSError, UnicodeError):
        raise SettingError("--database", "cannot be looked up: forbidden, too long, or not UTF-8") from None
    return path.absolute()  # or SQLite would read a meaning into the name :memory:


def moment(setting: str, text: str, now_us: int) -> int:
    """A time (RFC 3339) or an age in days (30d), as microseconds since 1970 (UTC). Raises SettingError."""
    if text.endswith("d") and text[:-1].isascii() and text[:-1].isdigit() and len(text) < 8:
        return now_us - int(text[:-1]) * 24 * 3600 * 1_000_000
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise SettingError(setting, "must be a time such as 2026-01-31T00:00:00Z, or an age such as 30d") from None
    if at.tzinfo is None:
        raise SettingError(setting, "needs a time zone, such as Z")
    return int(at.timestamp() * 1_000_000)
