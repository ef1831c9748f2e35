"""The settings of the server, with their units and defaults."""

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from caseload_server.file_mode import file_mode

_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")
_CONNECTION_AGE_SECONDS: Final = 300.0
_SQLITE_EXAMPLE: Final = "give the path of a file, such as sqlite:///data/caseload.db"
_NO_PLAIN_FILE: Final = {
    r"(?i):memory:|[?&;]mode=memory|^sqlite[^/]*:/{0,3}$": f"names no file: {_SQLITE_EXAMPLE}",
    r"(?i)^(sqlite[^/]*:/*)?file:": f"is a file: URI of SQLite: {_SQLITE_EXAMPLE}",
    r"^(?!sqlite:///)|\0": "must be sqlite:///PATH or postgresql://...",
    r"\?": f"must not have parameters after the path: {_SQLITE_EXAMPLE}",
    r"%[0-9A-Fa-f]{2}": "must not be percent-encoded: write each character of the path as it is",
    r"\\": "must not contain a backslash: separate folders with /",
    r"^sqlite:///~|\$": "must not contain ~ or a variable, which nothing expands: write the whole path",
    r"/$": "must be a file, not a folder",
    r"/:[^/]*$": "must not begin the name of the file with a colon, which SQLite reserves",
    r"[^/]{248}$": "has a name that is too long: SQLite needs room for a suffix, so use at most 247 bytes",
    r"-(wal|shm|journal)$": "is one of the files beside a database: give the database itself",
}
"""Ways to write something else than a plain file in a SQLite URL, as regular expressions with what is wrong."""
_NEEDS: Final = (
    *(("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")),
    *(("oidc_issuer", "oidc_audience"), ("oidc_audience", "oidc_issuer")),
    *(("oidc_permissions_claim", "oidc_issuer"), ("oidc_name_claim", "oidc_issuer")),
)
"""Settings that need another one."""

_AROUND: Final = re.compile(r"\A[\s\ufeff\u200b]+|[\s\ufeff\u200b]+\Z")
"""White space and invisible marks around a value: the end of a line, say, if the value was made from a file."""
_WITHIN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\u200b]")
"""Control characters, line ends and invisible marks, which no value of a setting can have."""
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class SettingError(Exception):
    """A setting that the server cannot start with. The text names the setting and the problem, never the value."""

    def __init__(self, setting: str, text: str) -> None:
        """Args: setting, as the user writes it, such as "--database"."""
        super().__init__(f"{setting}: {text}")


@dataclass(frozen=True)
class Config:
    """The settings of `caseload serve`."""

    address: str = "127.0.0.1:50051"
    """HOST:PORT to listen on. Port 0 picks a free port."""
    database: str = "sqlite:///data/caseload.db"
    """sqlite:///PATH, relative to the working directory, sqlite:////PATH for an absolute path, or postgresql://..."""
    workers: int = 1
    """Number of server processes on the port."""
    worker: int | None = None
    """Number of this worker process, from 0. None when this process was not started by a supervisor."""
    threads: int = 64
    """Number of writes at once. Reads have threads of their own, and so have batches, transfers, merges and deletes."""
    read_threads: int = 16
    """Number of reads at once, at most `threads`; half as many for lists. More threads contend more for the GIL."""
    max_queue_depth: int = 400
    """Number of calls that may wait for a thread, for each class of calls. Further calls are shed."""
    queue_timeout_seconds: float = 1.0
    """Longest wait for a thread. A new call is shed at once while its caller's oldest has waited for half of it."""
    max_caller_share: float = 0.5
    """The largest part of the threads, queues, watches and open calls that one principal may have, up to 1."""
    pool_size: int = 16
    """PostgreSQL connections for reads, and the same number for writes. Readiness, watches and metrics add one each."""
    max_watches: int = 100
    """Number of open watches in one process."""
    max_connections: int = 2500
    """Number of open client connections to one process."""
    max_connection_age_seconds: float | None = None
    """How long callers may keep a connection, in seconds. 0 sets no limit. None means 5 minutes, or none on loopback.
    Callers then connect again, so they find instances that were started later."""
    drain_seconds: float = 5.0
    """How long a stopping server, which reports NOT_SERVING, still accepts calls."""
    grace_seconds: float = 30.0
    """How long calls in progress may take after the drain."""
    keys_file: Path | None = None
    """Callers and the hashes of their keys. Without it and an issuer, all calls come from the principal `local`."""
    tls_cert: Path | None = None
    """The server's certificate chain, PEM."""
    tls_key: Path | None = None
    """The private key of `tls_cert`, PEM."""
    tls_client_ca: Path | None = None
    """The authority that client certificates must come from, PEM. Without it, clients need no certificate."""
    oidc_issuer: str | None = None
    """URL of an identity provider whose tokens are accepted, exactly as its tokens name it."""
    oidc_audience: str | None = None
    """The audience that a token must be for."""
    oidc_permissions_claim: str = "permissions"
    """The claim of a token with the caller's permissions."""
    oidc_name_claim: str = "sub"
    """The claim of a token with the caller's name."""
    access_log: Path | None = None
    """File for the access log. Without it, the access log goes to standard error."""
    access_log_required: bool = False
    """Reject calls while the access log cannot be written. Without it, calls continue and their lines are lost."""
    log_level: str = "info"
    """Lowest level that is logged: info, warning or error. The access log has no level."""
    metrics_address: str | None = None
    """HOST:PORT of the metrics page. Port 0 picks a free port. Without it, the server collects no metrics."""
    behind_proxy: str | None = None
    """Addresses and networks of the proxies in front of the server, separated by commas. Callers need credentials then,
    and their addresses are those that such a proxy sends in x-forwarded-for."""
    allow_insecure: bool = False
    """Allow other addresses than loopback without encryption or authentication."""

    def check(self) -> None:
        """Checks settings and their combinations. Raises SettingError."""
        if self.metrics_address is not None:
            host_and_port("--metrics-address", self.metrics_address)
        if not (self.is_loopback() or self.is_secure() or self.allow_insecure):
            text = "beyond loopback, set --tls-cert, and --keys-file or --oidc-issuer; or set --allow-insecure"
            raise SettingError("--address", text)
        for name, needed in _NEEDS:
            if getattr(self, name) != getattr(Config, name) and not getattr(self, needed):
                raise SettingError(_flag(name), f"needs {_flag(needed)}")
        if self.tls_client_ca and not self.keys_file:
            raise SettingError("--tls-client-ca", "needs --keys-file, which lists the callers")
        self._check_proxy()
        if self.oidc_issuer:
            _check_issuer(self.oidc_issuer)
        if self.access_log:
            _check_log_path("--access-log", self.access_log)
            files = (self.keys_file, self.tls_cert, self.tls_key, self.tls_client_ca)
            check_own_file("--access-log", self.access_log, self.database, *files)
        if not is_postgres(self.database):
            sqlite_path(self.database)

    def _check_proxy(self) -> None:
        if self.proxy_networks() and not self.is_authenticated():
            text = "needs --keys-file or --oidc-issuer: all callers of a proxy come from its address"
            raise SettingError("--behind-proxy", text)

    def proxy_networks(self) -> tuple[IpNetwork, ...]:
        """Returns the networks of `behind_proxy`; none when it is not set. Raises SettingError."""
        return tuple(map(_proxy_network, self.behind_proxy.split(","))) if self.behind_proxy is not None else ()

    def caller_share(self) -> float:
        """Returns `max_caller_share`, or 1 when all callers are the same principal."""
        return self.max_caller_share if self.is_authenticated() else 1.0

    def is_secure(self) -> bool:
        """Returns whether calls are encrypted and callers are authenticated."""
        return self.tls_cert is not None and self.is_authenticated()

    def is_authenticated(self) -> bool:
        """Returns whether callers need credentials."""
        return self.keys_file is not None or self.oidc_issuer is not None

    def is_loopback(self) -> bool:
        """Returns whether only processes of this machine can connect. Raises SettingError."""
        return ipaddress.ip_address(self.host_and_port()[0].strip("[]")).is_loopback

    def connection_age_seconds(self) -> float:
        """Returns how long callers may keep a connection, in seconds; 0 for no limit. Raises SettingError."""
        if self.max_connection_age_seconds is not None:
            return self.max_connection_age_seconds
        return 0 if self.is_loopback() else _CONNECTION_AGE_SECONDS

    def host_and_port(self) -> tuple[str, int]:
        """Returns the host and port of `address`. Raises SettingError."""
        return host_and_port("--address", self.address)


def clean_value(setting: str, value: str) -> str:
    """Returns a value without the white space around it, which has no meaning.

    Raises SettingError if a control character, a line end or an invisible mark is left within it.
    Args: setting, its name for the error.
    """
    cleaned = _AROUND.sub("", value)
    if _WITHIN.search(cleaned):
        raise SettingError(setting, "contains a line end, or another control or invisible character")
    return cleaned


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Returns whether the OTEL_* variables ask for traces: they name an exporter or its endpoint. Raises SettingError.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "none", "otlp"):
        raise SettingError("OTEL_TRACES_EXPORTER", "must be otlp or none")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in endpoints))


def host_and_port(setting: str, address: str) -> tuple[str, int]:
    """Splits HOST:PORT into an IP address, in brackets if it is IPv6, and a port. Raises SettingError.

    Args: setting, the name of the setting for the error.
    """
    host, _, port = address.rpartition(":")
    if host == "localhost":
        host = "127.0.0.1"  # the name has two addresses, and grpc would not fail if it can bind only one
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
    """Returns whether the URL is a PostgreSQL URL for libpq."""
    return database.startswith(_POSTGRES)


def has_password(database: str) -> bool:
    """Returns whether a PostgreSQL URL has a password, before its host or among its parameters."""
    if not is_postgres(database):
        return False
    rest = database.partition("://")[2]
    user = re.match("[^@/]*@", rest)  # libpq allows a ? before the @
    query = parse_qs(rest[user.end() if user else 0 :].partition("?")[2])
    return (user is not None and ":" in user[0]) or bool({"password", "sslpassword"} & query.keys())


def _proxy_network(text: str) -> IpNetwork:
    """Parses an address or a network. Raises SettingError, also for one that contains every address, and for a zone."""
    try:
        network = _unmapped(ipaddress.ip_network(text.strip()))
    except ValueError:
        network = None
    if network is None or not network.prefixlen or "%" in text:
        raise SettingError("--behind-proxy", "must be addresses or networks, such as 10.0.0.0/24, separated by commas")
    return network


def _unmapped(network: IpNetwork) -> IpNetwork:
    """Returns the IPv4 network that an IPv4-mapped one stands for: addresses are compared as IPv4 addresses."""
    if network.version == 6 and (address := network.network_address.ipv4_mapped):
        return ipaddress.IPv4Network((address, network.prefixlen - 96))
    return network


def _check_issuer(issuer: str) -> None:
    if not _is_issuer(issuer):
        raise SettingError("--oidc-issuer", "must be an https URL without a user name, a query, a fragment or a space")
    if find_spec("jwt") is None:
        raise SettingError("--oidc-issuer", "needs the extra caseload-server[oidc]")


def _is_issuer(issuer: str) -> bool:
    try:
        url = urlsplit(issuer)
        is_plain = not (url.query or url.fragment or "@" in url.netloc or re.search(r"\s", issuer))
        return url.scheme == "https" and bool(url.hostname) and is_plain and url.port != 0
    except ValueError:  # a port above 65535, or a bracket that is not closed
        return False


def _check_log_path(setting: str, path: Path) -> None:
    """Checks before any file is created, so that a failed start leaves no files behind. Raises SettingError."""
    try:
        if stat.S_ISDIR(file_mode(path)) or not stat.S_ISDIR(file_mode(path.parent)):
            raise SettingError(setting, "must be a file in an existing directory")
    except OSError:
        raise SettingError(setting, "cannot be accessed: no permission, or the path is too long") from None


def check_own_file(setting: str, path: Path, database: str, *files: Path | None) -> None:
    """Raises SettingError if a file that is about to be written is another one that the settings name.

    Args: setting, that names the file; files, that other settings name.
    """
    of_database = (f"{database.removeprefix(_SQLITE)}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))
    if _real_path(path) in {_real_path(file) for file in (*of_database, *files) if file}:
        raise SettingError(setting, "is a file that another setting or argument names: it needs a file of its own")


def _real_path(path: Path | str) -> str:
    try:
        return os.path.realpath(path)
    except OSError:  # the working directory was deleted
        return str(path)


def sqlite_path(database: str) -> Path:
    """Returns the absolute path of the file in a SQLite URL, without symbolic links. Raises SettingError.

    SQLite names the files beside the database after this path, so every module uses it and none resolves links itself.
    """
    path = sqlite_name(database)
    try:
        real = Path(os.path.realpath(path))
        mode = file_mode(real)
        if path.is_symlink() and not mode:
            raise SettingError("--database", "is a symbolic link to a file that does not exist")
        if not stat.S_ISDIR(file_mode(real.parent)):
            raise SettingError("--database", "the directory of the file does not exist")
        if mode and not stat.S_ISREG(mode):
            raise SettingError("--database", "is not a regular file")
    except OSError:
        raise SettingError("--database", "cannot be accessed: no permission, or the path is too long") from None
    return real


def sqlite_name(database: str) -> Path:
    """Returns the absolute path in a SQLite URL, with its symbolic links. Raises SettingError.

    The links may change while the server runs.
    """
    database = clean_value("--database", database)
    for pattern, text in _NO_PLAIN_FILE.items():
        if re.search(pattern, database):
            raise SettingError("--database", text)
    try:
        database.encode()  # bytes that are not UTF-8 are lone surrogates, which SQLite rejects
    except UnicodeError:
        raise SettingError("--database", "cannot be accessed: the path is not UTF-8") from None
    try:
        return Path(database.removeprefix(_SQLITE)).absolute()
    except OSError:
        raise SettingError("--database", "the working directory was deleted: give an absolute path") from None
