"""The one place that knows every part."""

import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
from caseload.v1 import (
    assignment_service_pb2_grpc,
    change_service_pb2_grpc,
    patient_service_pb2_grpc,
    therapist_service_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import logs
from service.config import Config, SettingError
from service.interceptors.access_log import AccessLog, Lines, LogFile
from service.interceptors.admission import Admission
from service.interceptors.guard import GuardedServer, Pools
from service.interceptors.retries import Retries
from service.interceptors.streams import StreamsServer
from service.keys import read as read_keys
from service.opening import open_store
from service.readiness import LIVENESS, READINESS, Readiness
from service.reloading import Reloading
from service.servicers.assignment import AssignmentServicer
from service.servicers.change import ChangeServicer
from service.servicers.pages import PageTokens
from service.servicers.patient import PatientServicer
from service.servicers.therapist import TherapistServicer
from service.servicers.watches import Watches
from service.store import RelationshipStore
from service.threads import StreamThreads, Threads, warn_where_unknown
from service.tls import Certificates

if TYPE_CHECKING:
    from service.metrics import Metrics, Page

MESSAGE_BYTES: Final = 1024 * 1024
METADATA_BYTES: Final = 16 * 1024
_HEALTH_WATCHES: Final = 256
_REFLECTIONS: Final = 32
"""Open at once; further ones are turned away."""
_PROBES: Final = 4
"""Health checks at once."""
_OTHER_FILES: Final = 400
"""File descriptors that no connection may take."""
HANDSHAKE_MS: Final = 10_000
"""Within which a new connection must have got through TLS, and sent its first frame."""
_END_SECONDS: Final = 1.0
"""How long calls that were cancelled at the end of a stop may still take."""
IDLE_MS: Final = 600_000
"""After which a connection without a call is asked to go."""
KEEPALIVE_MS: Final = 60_000
"""After so long a silence a caller is asked whether it is there; who does not answer in 20 seconds makes room."""
PING_MS: Final = 5_000
"""Callers may ping as often, with calls open or not: common ones do so every 10 seconds at most. Two sooner ones are
let pass, the next ends the connection."""


def clock() -> int:
    """Microseconds since 1970 (UTC)."""
    return time.time_ns() // 1000


class CallThreads:
    """The threads of each class of calls: each has its own, and its own bounds."""

    def __init__(self, config: Config, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Starts them. Args: monotonic, the clock by which calls wait, in seconds."""
        bounds = config.max_waiting, config.longest_wait_seconds, monotonic
        self.reads: Final = Threads(min(config.read_threads, config.threads), "read", *bounds)
        self.writes: Final = Threads(config.threads, "write", *bounds)
        self.probes: Final = Threads(_PROBES, "probe", *bounds)
        # A few threads more than watches, so that one too many is refused and does not wait.
        self.watches: Final = StreamThreads(config.max_watches + 4, "watch", config.max_waiting)
        self.health_watches: Final = StreamThreads(_HEALTH_WATCHES, "health")
        self.reflection: Final = StreamThreads(_REFLECTIONS, "reflection")

    def end(self, seconds: float) -> bool:
        """Ends those of unary calls, which may still write: whether all have ended within so long."""
        until = time.monotonic() + seconds
        ended = [threads.end(until) for threads in (self.reads, self.writes, self.probes)]
        return all(ended)


class CaseloadServer:
    """A server with everything in its place, to be started and stopped once."""

    def __init__(
        self, config: Config, server: grpc.Server, threads: CallThreads, address: str, store: RelationshipStore
    ) -> None:
        """Args: server, bound to address; threads, those of its calls; store, open."""
        self.address: Final = address
        self._config = config
        self._server = server
        self._threads = threads
        self._store = store
        self._page: Page | None = None
        self._metrics: Metrics | None = None
        self._is_ready = False
        self._is_stopping = False
        self._streams = StreamsServer(server)
        self._readiness = Readiness(store.check, self._set_readiness)
        self._watches = Watches(store, config.max_watches)
        # The other way it would send under a lock of all: a watcher that reads nothing would stop the server.
        self._health = health.HealthServicer(experimental_non_blocking=False)

    def register(self, clock: Callable[[], int], admission: Admission, access_log: AccessLog) -> None:
        """Puts the services on the server, behind what guards their calls."""
        self._access_log = access_log
        pages = PageTokens(self._store.keys.secret)
        threads, retries = self._threads, Retries()
        pools = Pools(threads.reads, threads.writes, threads.watches)
        guarded: Any = GuardedServer(self._server, admission, access_log, pools, retries)
        therapists = TherapistServicer(self._store, pages, clock)
        therapist_service_pb2_grpc.add_TherapistServiceServicer_to_server(therapists, guarded)
        patients = PatientServicer(self._store, pages, clock)
        patient_service_pb2_grpc.add_PatientServiceServicer_to_server(patients, guarded)
        periods = AssignmentServicer(self._store, pages, clock)
        assignment_service_pb2_grpc.add_AssignmentServiceServicer_to_server(periods, guarded)
        changes = ChangeServicer(self._store, self._watches)
        change_service_pb2_grpc.add_ChangeServiceServicer_to_server(changes, guarded)
        pools = Pools(threads.probes, threads.probes, threads.reflection)
        streams: Any = GuardedServer(self._streams, admission, access_log, pools, retries)
        pools = Pools(threads.probes, threads.probes, threads.health_watches)
        probed: Any = GuardedServer(self._streams, admission, access_log, pools, retries)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, probed)
        reflection.enable_server_reflection((*READINESS, health.SERVICE_NAME, reflection.SERVICE_NAME), streams)

    def measure(self, metrics: "Metrics", page: "Page | None") -> None:
        """Args: metrics, which count; page, which shows them from the start to the end."""
        self._metrics, self._page = metrics, page
        metrics.follow("ready", lambda: self._is_ready)
        metrics.follow("watches", self._watches.count)
        metrics.follow("watches_limit", lambda: self._config.max_watches)
        for name, labels, look in self._store.gauges():
            metrics.follow(name, look, **labels)
        for kind, threads in (("read", self._threads.reads), ("write", self._threads.writes)):
            metrics.follow("in_flight", threads.in_flight, pool=kind)
            metrics.follow("waiting", threads.waiting, pool=kind)

    @property
    def metrics_address(self) -> str | None:
        """Where its metrics are, where it serves them itself."""
        return self._page.address if self._page else None

    def start(self) -> None:
        """Begins to answer."""
        warn_where_unknown()
        self._server.start()
        self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        self._set_readiness(True)
        self._readiness.start()
        if self._metrics:
            self._metrics.start()
        if self._page:
            self._page.start()

    def stop(self, *, drain: bool = True) -> bool:
        """Stops without losing a call: readiness goes, calls drain, then the store is closed. Whether all ended."""
        self._is_stopping = True
        self._set_readiness(False)
        self._readiness.stop()
        if drain:
            time.sleep(self._config.drain_seconds)
        self._watches.close()
        stopped = self._server.stop(self._config.grace_seconds)
        self._streams.end()  # health watches and open reflection would last the whole grace period
        left = not stopped.wait(self._config.grace_seconds + _END_SECONDS)  # for ever, where the access log hangs
        # Calls that outlast the grace period were cancelled, and may still write: their lines too.
        ended = self._threads.end(_END_SECONDS) and not left
        self._store.close()
        if ended:
            self._access_log.close()
        if self._metrics:
            self._metrics.stop()
        if self._page:
            self._page.close()
        return ended

    def _set_readiness(self, ready: bool) -> None:  # noqa: FBT001 - as Readiness tells it
        self._is_ready = ready = ready and not self._is_stopping
        states = health_pb2.HealthCheckResponse
        for name in READINESS:
            self._health.set(name, states.SERVING if ready else states.NOT_SERVING)


def build_server(
    config: Config, clock: Callable[[], int] = clock, monotonic: Callable[[], float] = time.monotonic
) -> CaseloadServer:
    """A server bound to its port, with its database open and migrated. Raises SettingError; nothing is left then.

    Args: clock, in microseconds since 1970; monotonic, the clock by which calls wait, in seconds.
    """
    config.check()
    keys_file = config.keys_file
    keys = Reloading([keys_file], lambda: read_keys(keys_file)) if keys_file else None
    credentials = _credentials(config)
    threads = CallThreads(config, monotonic)
    server = grpc.server(threads.reads, options=_limits(config))
    metrics, page = None, None
    try:
        address = _bind(server, config, credentials)
        metrics, page = _metrics(config)
        store = open_store(config, clock, metrics.meter if metrics else None)
        lines = _access_lines(config, store)
    except SettingError:
        server.stop(None)
        threads.end(0)
        if page:
            page.close()
        raise
    built = CaseloadServer(config, server, threads, address, store)
    built.register(clock, Admission(keys.value if keys else None), AccessLog(lines, metrics))
    if metrics:
        built.measure(metrics, page)
    return built


def _metrics(config: Config) -> "tuple[Metrics | None, Page | None]":
    """What counts, where it can be read, and the page; that of workers is served by the process that started them."""
    if not config.metrics_address:
        return None, None
    from service.metrics import Metrics, Page  # here, since only those who count need it

    metrics = Metrics(config.worker)
    logs.count_with(metrics.logged)
    return metrics, Page(config.metrics_address, metrics.registry) if config.worker is None else None


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if not (config.tls_cert and config.tls_key):
        return None
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca).credentials()


def _access_lines(config: Config, store: RelationshipStore) -> Lines:
    if not config.access_log:
        return logs.OnTerminal() if sys.stderr.isatty() else logs.STANDARD_ERROR
    try:
        return LogFile(config.access_log)
    except OSError:
        store.close()
        raise SettingError("--access-log", "cannot be written") from None


def _limits(config: Config) -> list[tuple[str, int]]:
    """What the C core is to hold callers to."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [
        ("grpc.so_reuseport", int(config.workers > 1)),  # or a second server would take the port unseen
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),  # between the two it would refuse at random
        # All the watches there can be may share a connection, and calls with them. What is above is refused and does
        # not wait when a caller has not heard of the limit yet, so there is room for a burst.
        ("grpc.max_concurrent_streams", config.max_watches + 1000),
        # It counts calls that have ended until they are cleared away, and so refuses a caller that keeps to the limit.
        # Calls that are given up as soon as they begin are bounded by max_pending_requests below.
        ("grpc.http.overload_protection", 0),
        # Where the process has no time to take a method's calls on, the library refuses what is above a burst.
        ("grpc.server.max_pending_requests", config.max_watches + 1000),
        ("grpc.server.max_pending_requests_hard_limit", config.max_watches + 1000),
        # Some files are left for the database: each thread has two or three.
        ("grpc.max_allowed_incoming_connections", max(1, min(config.max_connections, files - _OTHER_FILES))),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", HANDSHAKE_MS),  # until then a caller is held to no limit on metadata
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _bind(server: grpc.Server, config: Config, credentials: grpc.ServerCredentials | None) -> str:
    host, port = config.host_and_port()
    where = f"{host}:{port}"
    try:
        port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    except RuntimeError:
        raise SettingError("--address", "cannot be listened on: in use, or not of this machine") from None
    return f"{host}:{port}"
