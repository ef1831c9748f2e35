"""The gRPC server: every part, put together once."""

import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from caseload.v1 import (
    assignment_service_pb2_grpc,
    change_service_pb2_grpc,
    patient_service_pb2_grpc,
    therapist_service_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from caseload_server.api.assignment_service import AssignmentServicer
from caseload_server.api.change_service import ChangeServicer
from caseload_server.api.page_tokens import PageTokens
from caseload_server.api.patient_service import PatientServicer
from caseload_server.api.therapist_service import TherapistServicer
from caseload_server.api.watches import Watches
from caseload_server.clock import now_us
from caseload_server.config import Config, SettingError
from caseload_server.domain import limits
from caseload_server.observability import logs
from caseload_server.observability.access_log import AccessLog, LogFile, LogSink
from caseload_server.observability.readiness import LIVENESS, READINESS, Readiness
from caseload_server.rpc.executors import Executors
from caseload_server.rpc.grpcio_compat import warn_unsupported_grpcio
from caseload_server.rpc.open_streams import OpenStreams
from caseload_server.rpc.pipeline import MethodExecutors, PipelineServer
from caseload_server.rpc.retry_delays import RetryDelays
from caseload_server.security.api_keys import read as read_keys
from caseload_server.security.auth import Auth
from caseload_server.security.file_reload import Reloading
from caseload_server.security.tls import Certificates
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.factory import open_store

if TYPE_CHECKING:
    from caseload_server.observability.metrics import Metrics
    from caseload_server.observability.metrics_page import MetricsPage

_CANCELLED_CALLS_SECONDS: Final = 1.0
"""How long calls that were cancelled at the end of a stop may still take."""


class Parts(NamedTuple):
    """What a server is made of."""

    grpc_server: grpc.Server
    """Bound to its address, with the executor of reads as its own."""
    address: str
    """HOST:PORT with the real port."""
    executors: Executors
    store: RelationshipStore
    auth: Auth
    access_log: AccessLog
    metrics: "Metrics | None"
    metrics_page: "MetricsPage | None"
    """None where a supervisor serves it."""


class CaseloadServer:
    """A server that is started and stopped once."""

    def __init__(self, config: Config, parts: Parts, clock: Callable[[], int]) -> None:
        """Args: clock, the time in microseconds since 1970 (UTC)."""
        self.address: Final = parts.address
        self.metrics_address: Final = parts.metrics_page.address if parts.metrics_page else None
        self._config = config
        self.store: Final = parts.store
        self._parts = parts
        self._is_ready = False
        self._is_stopping = False
        self._retry_delays = RetryDelays()
        self._streams = OpenStreams(parts.grpc_server)
        self._readiness = Readiness(parts.store.check, self._set_readiness)
        self._watches = Watches(parts.store, config.max_watches)
        # The non-blocking servicer sends under one lock: a watcher that reads nothing would stop the whole server.
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._register_services(clock)
        self._register_library_services()
        if parts.metrics:
            self._add_gauges(parts.metrics)

    def _register_services(self, clock: Callable[[], int]) -> None:
        """Adds the services of the contract."""
        store, executors = self.store, self._parts.executors
        pages = PageTokens(store.keys.secret)
        server: Any = self._pipeline(
            self._parts.grpc_server, MethodExecutors(executors.reads, executors.writes, executors.watches)
        )
        therapists = TherapistServicer(store, pages, clock)
        therapist_service_pb2_grpc.add_TherapistServiceServicer_to_server(therapists, server)
        patients = PatientServicer(store, pages, clock)
        patient_service_pb2_grpc.add_PatientServiceServicer_to_server(patients, server)
        assignments = AssignmentServicer(store, pages, clock)
        assignment_service_pb2_grpc.add_AssignmentServiceServicer_to_server(assignments, server)
        changes = ChangeServicer(store, self._watches)
        change_service_pb2_grpc.add_ChangeServiceServicer_to_server(changes, server)

    def _register_library_services(self) -> None:
        """Adds health and reflection, whose streams a stop has to end."""
        probes, executors = self._parts.executors.probes, self._parts.executors
        for_health: Any = self._pipeline(self._streams, MethodExecutors(probes, probes, executors.health_watches))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, for_health)
        names = (*READINESS, health.SERVICE_NAME, reflection.SERVICE_NAME)
        for_reflection: Any = self._pipeline(self._streams, MethodExecutors(probes, probes, executors.reflection))
        reflection.enable_server_reflection(names, for_reflection)

    def _pipeline(self, server: Any, executors: MethodExecutors) -> PipelineServer:
        return PipelineServer(server, self._parts.auth, self._parts.access_log, executors, self._retry_delays)

    def _add_gauges(self, metrics: "Metrics") -> None:
        metrics.add_gauge("ready", lambda: self._is_ready)
        metrics.add_gauge("watches", self._watches.count)
        metrics.add_gauge("watches_limit", lambda: self._config.max_watches)
        for name, labels, sample in self.store.gauges():
            metrics.add_gauge(name, sample, **labels)
        for kind, executor in (("read", self._parts.executors.reads), ("write", self._parts.executors.writes)):
            metrics.add_gauge("in_flight", executor.in_flight, pool=kind)
            metrics.add_gauge("waiting", executor.queue_depth, pool=kind)

    def start(self) -> None:
        """Starts to answer calls."""
        warn_unsupported_grpcio()
        self._parts.grpc_server.start()
        self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        self._set_readiness(True)
        self._readiness.start()
        if self._parts.metrics:
            self._parts.metrics.start()
        if self._parts.metrics_page:
            self._parts.metrics_page.start()

    def stop(self, *, drain: bool = True) -> bool:
        """Stops without losing a call: becomes NOT_SERVING, drains, then closes the store.

        Returns whether every call has ended.
        """
        self._is_stopping = True
        self._set_readiness(False)
        self._readiness.stop()
        if drain:
            time.sleep(self._config.drain_seconds)
        self._watches.close()
        stopped = self._parts.grpc_server.stop(self._config.grace_seconds)
        self._streams.end()  # health watches and open reflection would last the whole grace period
        # A call whose access log hangs never ends.
        all_left = stopped.wait(self._config.grace_seconds + _CANCELLED_CALLS_SECONDS)
        # Calls that outlast the grace period were cancelled, and may still write: their lines are logged too.
        ended = self._parts.executors.shutdown_and_wait(_CANCELLED_CALLS_SECONDS) and all_left
        self.store.close()
        if ended:
            self._parts.access_log.close()
        if self._parts.metrics:
            self._parts.metrics.stop()
        if self._parts.metrics_page:
            self._parts.metrics_page.close()
        return ended

    def _set_readiness(self, ready: bool) -> None:  # noqa: FBT001 - the callback of Readiness
        self._is_ready = ready = ready and not self._is_stopping
        states = health_pb2.HealthCheckResponse
        for name in READINESS:
            self._health.set(name, states.SERVING if ready else states.NOT_SERVING)


def build_server(
    config: Config, clock: Callable[[], int] = now_us, monotonic: Callable[[], float] = time.monotonic
) -> CaseloadServer:
    """A server bound to its port, with its database open and migrated. Raises SettingError, and leaves nothing behind.

    Args: clock, the time in microseconds since 1970 (UTC); monotonic, the clock of the queue timeout, in seconds.
    """
    config.check()
    keys_file = config.keys_file
    keys = Reloading([keys_file], lambda: read_keys(keys_file)) if keys_file else None
    credentials = _credentials(config)
    executors = Executors(config, monotonic)
    server = grpc.server(executors.reads, options=_channel_options(config))
    metrics, page = None, None
    try:
        address = _bind(server, config, credentials)
        metrics, page = _metrics(config)
        store = open_store(config, clock, metrics.store if metrics else None)
        sink = _access_log_sink(config, store)
    except SettingError:
        server.stop(None)
        executors.shutdown_and_wait(0)
        if page:
            page.close()
        raise
    auth, access_log = Auth(keys.value if keys else None), AccessLog(sink, metrics)
    return CaseloadServer(config, Parts(server, address, executors, store, auth, access_log, metrics, page), clock)


def _metrics(config: Config) -> "tuple[Metrics | None, MetricsPage | None]":
    """The metrics, where they are asked for, and their page; the page of several workers is the supervisor's."""
    if not config.metrics_address:
        return None, None
    from caseload_server.observability.metrics import Metrics
    from caseload_server.observability.metrics_page import MetricsPage  # here, since only servers with metrics need it

    metrics = Metrics(config.worker)
    logs.count_with(metrics.logged)
    return metrics, MetricsPage(config.metrics_address, metrics.registry) if config.worker is None else None


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if not (config.tls_cert and config.tls_key):
        return None
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca).credentials()


def _access_log_sink(config: Config, store: RelationshipStore) -> LogSink:
    if not config.access_log:
        return logs.OnTerminal() if sys.stderr.isatty() else logs.STANDARD_ERROR
    try:
        return LogFile(config.access_log)
    except OSError:
        store.close()
        raise SettingError("--access-log", "cannot be written") from None


def _channel_options(config: Config) -> list[tuple[str, int]]:
    """What the C core is to hold callers to."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [
        ("grpc.so_reuseport", int(config.workers > 1)),  # or a second server would take the port unseen
        ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES),  # between the two it would refuse at random
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
        ("grpc.max_allowed_incoming_connections", max(1, min(config.max_connections, files - limits.RESERVED_FILES))),
        ("grpc.server_handshake_timeout_ms", limits.HANDSHAKE_TIMEOUT_MS),
        (
            "grpc.http2.settings_timeout",
            limits.HANDSHAKE_TIMEOUT_MS,
        ),  # no metadata limit holds until then
        ("grpc.max_connection_idle_ms", limits.MAX_CONNECTION_IDLE_MS),
        ("grpc.keepalive_time_ms", limits.KEEPALIVE_INTERVAL_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.MIN_PING_INTERVAL_MS),
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
