"""The public keys with which an identity provider signs its tokens, kept up to date by a thread of their own.

The issuer names the address of its keys in a document (OpenID Connect Discovery 1.0). The keys are a JSON Web Key Set
(RFC 7517). Threads that receive calls never wait for the issuer.
"""

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from caseload_server.domain import limits

_log = structlog.get_logger()
_ALGORITHMS: Final = {"RSA": "RS256", "P-256": "ES256", "Ed25519": "EdDSA"}
"""The only algorithm for each type of key, so that a token cannot choose one. Keys of other types are ignored."""
_PUBLIC_PARTS: Final = ("kty", "crv", "n", "e", "x", "y")
_MIN_RSA_BITS: Final = 2048
_MAX_KEYS: Final = 100
_MAX_BYTES: Final = 512 * 1024
_TIMEOUT_SECONDS: Final = 3.0
"""How long each of the two requests to the issuer may take."""

ALGORITHMS: Final = frozenset(_ALGORITHMS.values())


class IssuerKey(NamedTuple):
    """A public key of the issuer."""

    id: str
    """Its kid; empty if it has none."""
    algorithm: str
    public_key: Any
    der: bytes
    """The public key in DER, to compare it with others."""


class KeySet:
    """The keys of an issuer at one time."""

    def __init__(self, keys: Iterable[IssuerKey]) -> None:
        """Of two keys with the same id and algorithm, none is used."""
        found = [*keys]
        names = [(key.id, key.algorithm) for key in found]
        self._keys = {name: key for name, key in zip(names, found, strict=True) if names.count(name) == 1}

    def find(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        """Returns the key for a token. A token without the id of a key is accepted only if there is a single key."""
        if key_id is None:
            only = next(iter(self._keys.values())) if len(self._keys) == 1 else None
            return only if only and only.algorithm == algorithm else None
        return self._keys.get((key_id, algorithm))

    def content(self) -> Mapping[tuple[str, str], bytes]:
        """Returns the keys in a form that can be compared."""
        return {name: key.der for name, key in self._keys.items()}


class IssuerKeys:
    """The current keys of one issuer.

    They are fetched every limits.ISSUER_REFRESH_SECONDS, and earlier on request, but at most twice in
    limits.ISSUER_RETRY_SECONDS. While the issuer does not answer, they stay in use for limits.ISSUER_OUTAGE_SECONDS.
    """

    def __init__(self, issuer: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: issuer, its URL, exactly as tokens name it; clock, in seconds."""
        self._issuer = issuer
        self._clock = clock
        self._retry_seconds = limits.ISSUER_RETRY_SECONDS
        self._keys: KeySet | None = None
        self._fetched_at = clock()
        self._failed = False
        self._lock = threading.Lock()
        self._is_resting = False
        self._waiting: list[Callable[[], None]] = []
        """The functions to call after the next fetch."""
        self._served: list[Callable[[], None]] = []
        """Those to call after the fetch that runs."""
        self._attempted = threading.Event()
        self._requested = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="issuer-keys", daemon=True)

    def start(self) -> None:
        """Starts to fetch the keys, and waits for the first attempt. It also returns if that fails."""
        self._thread.start()
        self._attempted.wait(2 * _TIMEOUT_SECONDS)

    def close(self) -> None:
        """Stops the thread. A request in progress ends by itself."""
        self._stopped.set()
        self._requested.set()

    def current(self) -> KeySet | None:
        """Returns the keys; None before the first answer, and after an outage that lasts too long."""
        return self._keys if self.age_seconds() < limits.ISSUER_OUTAGE_SECONDS else None

    def age_seconds(self) -> float:
        """Returns the time since the keys were last fetched, or since the start, in seconds."""
        return self._clock() - self._fetched_at

    def when_refreshed(self, callback: Callable[[], None]) -> bool:
        """Requests the keys again, because a token names an unknown key. Then calls the function, in another thread.

        A fetch that runs already may have read older keys, so the function is called after the next one.
        Returns False, and does not call the function, if the keys were just fetched, the last fetch failed, or too many
        calls wait already.
        """
        with self._lock:
            has_room = len(self._waiting) + len(self._served) < limits.MAX_WAITING_FOR_ISSUER
            waits = has_room and not (self._is_resting or self._failed)
            if waits:
                self._waiting.append(callback)
            self._requested.set()
        return waits

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._requested.clear()
            fetched = self._serve_waiting()
            if fetched and self._waiting:  # they came during the fetch
                fetched = self._serve_waiting()
            self._rest()
            if fetched:
                self._requested.wait(limits.ISSUER_REFRESH_SECONDS - self._retry_seconds)

    def _serve_waiting(self) -> bool:
        """Fetches the keys, then calls the functions that wait. Returns whether the fetch succeeded."""
        with self._lock:
            self._served, self._waiting = self._waiting, []
        fetched = self._refresh()
        self._attempted.set()
        with self._lock:
            served, self._served = self._served, []
            if not fetched:  # the next fetch would probably fail too
                served, self._waiting = served + self._waiting, []
        for callback in served:
            with suppress(Exception):  # the thread must survive it
                callback()
        return fetched

    def _rest(self) -> None:
        """Pauses, so that invented keys do not each cause a request to the issuer."""
        with self._lock:
            self._is_resting = True
        self._stopped.wait(self._retry_seconds)
        with self._lock:
            self._is_resting = False

    def _refresh(self) -> bool:
        try:
            keys = _fetch(self._issuer)
        except Exception as error:  # noqa: BLE001 - the issuer can answer anything, and the thread must survive it
            if not self._failed:
                _log.error("issuer keys unavailable", type=type(error).__qualname__, reason=_reason(error))
            self._failed = True
            return False
        if self._failed or self._keys is None or self._keys.content() != keys.content():
            _log.info("issuer keys fetched", keys=len(keys.content()))
            self._keys = keys
        self._fetched_at = self._clock()
        self._failed = False
        return True


def _reason(error: Exception) -> str:
    """Returns the text of an IssuerError or of a connection error. Other texts may quote the answer of the issuer."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    return str(error) if isinstance(error, IssuerError) else getattr(cause, "strerror", None) or ""


class IssuerError(Exception):
    """The issuer did not answer with its keys. The text says why."""


def _fetch(issuer: str) -> KeySet:
    context = ssl.create_default_context()  # reads the authorities again, which SSL_CERT_FILE can name
    discovery = _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", context)
    if discovery.get("issuer") != issuer:
        raise IssuerError("its document names another issuer")
    address = str(discovery.get("jwks_uri"))
    if not address.startswith("https://"):
        raise IssuerError("its document names no https address of keys")
    return KeySet(_usable(_get(address, context).get("keys")))


class _BoundedConnection(http.client.HTTPSConnection):
    """Ends after _TIMEOUT_SECONDS. The timeout of a socket begins again with each byte of an answer."""

    def connect(self) -> None:
        super().connect()
        timer = threading.Timer(_TIMEOUT_SECONDS, _shut_down, [self.sock])
        timer.daemon = True
        timer.start()


def _shut_down(connected: socket.socket) -> None:
    with suppress(OSError):  # it is closed
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # that of SSLSocket would take TLS away from the reader


class _BoundedHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._tls = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_BoundedConnection, req, context=self._tls)


def _get(address: str, context: ssl.SSLContext) -> dict[str, Any]:
    """Gets a JSON object over https. Follows no redirects."""
    opener = urllib.request.OpenerDirector()
    if not _is_loopback(urlsplit(address).hostname or ""):  # a proxy has another loopback interface
        opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(_BoundedHandler(context))
    until = time.monotonic() + _TIMEOUT_SECONDS
    content = b""
    with opener.open(address, timeout=_TIMEOUT_SECONDS) as response:
        if response.status != http.HTTPStatus.OK:
            raise IssuerError(f"its status is {response.status}")
        while part := response.read1(_MAX_BYTES):
            content += part
            if len(content) > _MAX_BYTES or time.monotonic() > until:
                raise IssuerError("its answer is too long or too slow")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise IssuerError("its answer is no JSON object")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _usable(keys: object) -> Iterator[IssuerKey]:
    """Yields the keys that can verify tokens. Skips keys of other kinds, and malformed ones."""
    if not isinstance(keys, list):
        raise IssuerError("its answer has no list of keys")
    for key in keys[:_MAX_KEYS]:
        with suppress(Exception):
            if usable := _parse(key):
                yield usable


def _parse(key: dict[str, Any]) -> IssuerKey | None:
    algorithm = _ALGORITHMS.get("RSA" if key["kty"] == "RSA" else str(key.get("crv")))
    is_for_signatures = key.get("use", "sig") == "sig" and "verify" in key.get("key_ops", ["verify"])
    if algorithm is None or key.get("alg", algorithm) != algorithm or not is_for_signatures or "d" in key:
        return None
    public_key = jwt.PyJWK({part: key[part] for part in _PUBLIC_PARTS if part in key}, algorithm).key
    if isinstance(public_key, RSAPublicKey) and public_key.key_size < _MIN_RSA_BITS:
        return None
    der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return IssuerKey(str(key.get("kid", "")), algorithm, public_key, der)
