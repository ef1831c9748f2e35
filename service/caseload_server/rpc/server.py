"""Builds the gRPC server from its parts, starts it and stops it."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from caseload_server.api.assignment_service import AssignmentServicer
from caseload_server.api.change_service import ChangeServicer
from caseload_server.api.page_tokens import PageTokens
from caseload_server.api.patient_service import PatientServicer
from caseload_server.api.therapist_service import TherapistServicer
from caseload_server.api.watches import Watches
from caseload_server.clock import now_us
from caseload_server.config import CANNOT_LISTEN, Config, SettingError, is_postgres, wants_traces
from caseload_server.domain import limits
from caseload_server.observability import logs
from caseload_server.observability.access_log import AccessLog
from caseload_server.observability.head_log import HeadLog
from caseload_server.observability.log_file import LogFile, LogSink
from caseload_server.observability.readiness import LIVENESS_SERVICE, READINESS_SERVICES, Readiness
from caseload_server.open_files import max_connections
from caseload_server.private_files import check_log_file
from caseload_server.rpc.admission import Admission
from caseload_server.rpc.executors import Executors
from caseload_server.rpc.grpcio_compat import check_grpcio
from caseload_server.rpc.health_service import HealthServicer
from caseload_server.rpc.open_streams import OpenStreams
from caseload_server.rpc.pipeline import MethodExecutors, PipelineServer
from caseload_server.rpc.reflection_service import ReflectionServicer
from caseload_server.security.auth import REFLECTION_SERVICES, Auth
from caseload_server.security.keys_file import Callers
from caseload_server.security.tls import Certificates
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.expiry_sweeper import ExpirySweeper

if TYPE_CHECKING:
    from caseload_server.observability.metrics import Metrics
    from caseload_server.observability.metrics_page import MetricsPage
    from caseload_server.observability.tracing import Tracing

_log = structlog.get_logger()
_CANCELLED_CALLS_SECONDS: Final = 1.0
"""How long a stop waits for calls that it cancelled at the end of the grace period, in seconds."""


class ServerParts(NamedTuple):
    """The parts of a server, each open and ready for use."""

    grpc_server: grpc.Server
    """Bound to its address. Its default executor is the one for reads."""
    address: str
    """HOST:PORT with the real port."""
    admission: Admission
    executors: Executors
    store: RelationshipStore
    auth: Auth
    access_log: AccessLog
    metrics: "Metrics | None"
    tracing: "Tracing | None"
    metrics_page: "MetricsPage | None"
    """None when metrics are off, and when the supervisor of several workers serves the page."""


class CaseloadServer:
    """A gRPC server that is started and stopped once."""

    def __init__(self, config: Config, parts: ServerParts, clock: Callable[[], int]) -> None:
        """Registers all services. Args: clock, returns microseconds since 1970 (UTC)."""
        self.address: Final = parts.address
        self.metrics_address: Final = parts.metrics_page.address if parts.metrics_page else None
        self.is_traced: Final = parts.tracing is not None
        self.store: Final = parts.store
        self._config = config
        self._parts = parts
        self._is_ready = False
        self._is_stopping = False
        self._library_streams = OpenStreams(parts.grpc_server)
        self._readiness = Readiness(self._check_ready, self._set_readiness)
        self._head_log = HeadLog(parts.store.log_head)
        self.expiry_sweeper: Final = ExpirySweeper(parts.store.end_expired, clock)
        self._watches = Watches(parts.store, config.max_watches, config.caller_share(), config.connection_age_seconds())
        self._health = HealthServicer()
        self._register_caseload_services(clock)
        self._register_library_services()
        if parts.metrics:
            self._add_gauges(parts.metrics)

    def _register_caseload_services(self, clock: Callable[[], int]) -> None:
        """Registers the services of the contract."""
        store, executors = self.store, self._parts.executors
        page_tokens = PageTokens(store.keys.secret)
        method_executors = MethodExecutors(
            executors.reads, executors.scans, executors.writes, executors.bulk_writes, executors.watches
        )
        server = self._pipeline(self._parts.grpc_server, method_executors)
        servicers = {
            "caseload.v1.TherapistService": TherapistServicer(store, page_tokens, clock),
            "caseload.v1.PatientService": PatientServicer(store, page_tokens, clock),
            "caseload.v1.AssignmentService": AssignmentServicer(store, page_tokens, clock),
            "caseload.v1.ChangeService": ChangeServicer(store, self._watches),
        }
        for name in READINESS_SERVICES:
            server.add_service(name, servicers[name])

    def _register_library_services(self) -> None:
        """Registers health and reflection. Their streams stay open until a stop cancels them."""
        executors, server = self._parts.executors, self._library_streams
        health_executors = MethodExecutors.same(executors.probes, executors.health_watches)
        self._pipeline(server, health_executors).add_service(health.SERVICE_NAME, self._health)
        reflection_executors = MethodExecutors.same(executors.probes, executors.reflection)
        reflection_server = self._pipeline(server, reflection_executors)
        services = (*READINESS_SERVICES, health.SERVICE_NAME, *REFLECTION_SERVICES)
        for name in REFLECTION_SERVICES:
            reflection_server.add_service(name, ReflectionServicer(name, services))

    def _pipeline(self, server: Any, executors: MethodExecutors) -> PipelineServer:
        return PipelineServer(server, self._parts.auth, self._parts.access_log, executors, self._parts.admission)

    def _add_gauges(self, metrics: "Metrics") -> None:
        metrics.add_gauge("ready", lambda: self._is_ready)
        metrics.add_gauge("watches", self._watches.count)
        metrics.add_gauge("expiry_lag_seconds", self.expiry_sweeper.lag_seconds)
        metrics.add_gauge("watches_limit", lambda: self._config.max_watches)
        for name, labels, sample in self.store.gauges():
            metrics.add_gauge(name, sample, **labels)
        for pool, executor in self._parts.executors.unary().items():
            metrics.add_gauge("in_flight", executor.in_flight, pool=pool)
            metrics.add_gauge("queue_depth", executor.queue_depth, pool=pool)

    def start(self) -> None:
        """Starts to serve calls, and becomes SERVING."""
        self._parts.grpc_server.start()
        self._health.set(LIVENESS_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._set_readiness(True)
        self._readiness.start()
        self._head_log.start()
        self.expiry_sweeper.start()
        if self._parts.metrics:
            self._parts.metrics.start()
        if self._parts.metrics_page:
            self._parts.metrics_page.start()

    def stop(self, *, drain: bool = True) -> bool:
        """Stops without losing a call: becomes NOT_SERVING, drains, waits for open calls, then closes the store.

        Args: drain, waits config.drain_seconds before it rejects new calls. Returns whether every call has ended.
        """
        self._is_stopping = True
        self._set_readiness(False)
        self._readiness.stop()
        self._head_log.stop()
        if drain:
            time.sleep(self._config.drain_seconds)
        self._watches.close()
        stopped = self._parts.grpc_server.stop(self._config.grace_seconds)
        self._library_streams.cancel_all()  # otherwise they would last for the whole grace period
        # The wait is bounded, because a call whose access log hangs never ends.
        calls_ended = stopped.wait(self._config.grace_seconds + _CANCELLED_CALLS_SECONDS)
        # Calls that outlast the grace period are cancelled, but may still write. They are logged before the log closes.
        threads_ended = self._parts.executors.shutdown_and_wait(_CANCELLED_CALLS_SECONDS)
        self._parts.admission.close()
        self._parts.auth.close()
        self.expiry_sweeper.stop()
        self.store.close()
        if calls_ended and threads_ended:
            self._parts.access_log.close()
        if self._parts.metrics:
            self._parts.metrics.stop()
        if self._parts.metrics_page:
            self._parts.metrics_page.close()
        if self._parts.tracing:
            self._parts.tracing.shutdown()
        return calls_ended and threads_ended

    def _check_ready(self) -> None:
        """Raises if calls would fail: the database does not answer, or a required access log cannot be written."""
        self.store.check()
        self._parts.access_log.check()

    def _set_readiness(self, ready: bool) -> None:  # noqa: FBT001 - the callback of Readiness
        self._is_ready = ready = ready and not self._is_stopping
        states = health_pb2.HealthCheckResponse
        for name in READINESS_SERVICES:
            self._health.set(name, states.SERVING if ready else states.NOT_SERVING)


def build_server(
    config: Config,
    clock: Callable[[], int] = now_us,
    monotonic: Callable[[], float] = time.monotonic,
    open_store: Callable[..., RelationshipStore] = open_store,
) -> CaseloadServer:
    """Builds a server that is bound to its port and has its database open and migrated.

    Args: clock, returns microseconds since 1970 (UTC); monotonic, the clock of the queue timeout, in seconds;
    open_store, called as the function of that name. Raises SettingError, after it has closed all that it opened.
    """
    config.check()
    check_grpcio()
    if config.access_log and check_log_file("--access-log", config.access_log):
        _log.warning("access log open to others", setting="--access-log")
    callers, credentials = Callers(config.keys_file) if config.keys_file else None, _credentials(config)
    with ExitStack() as opened:
        admission = Admission(config.caller_share())
        opened.callback(admission.close)
        executors = Executors(config, admission, monotonic)
        opened.callback(executors.shutdown_and_wait, 0)
        grpc_server = grpc.server(executors.reads, options=_channel_options(config))
        opened.callback(grpc_server.stop, None)
        address = _bind(grpc_server, config, credentials)
        metrics, page = _metrics(config)
        if page:
            opened.callback(page.close)
        auth = _auth(config, callers, metrics)
        opened.callback(auth.close)
        tracing = _tracing(config)
        if tracing:
            opened.callback(tracing.shutdown)
        store = open_store(config, clock, *(observer.store for observer in (metrics, tracing) if observer))
        opened.callback(store.close)
        access_log = AccessLog(_access_log_sink(config), metrics, tracing, required=config.access_log_required)
        opened.callback(access_log.close)
        parts = ServerParts(grpc_server, address, admission, executors, store, auth, access_log, metrics, tracing, page)
        server = CaseloadServer(config, parts, clock)
        opened.pop_all()  # from here on the server closes them
    return server


def _auth(config: Config, callers: Callers | None, metrics: "Metrics | None") -> Auth:
    tokens = None
    if config.oidc_issuer:
        from caseload_server.security.issuer_keys import IssuerKeys
        from caseload_server.security.tokens import Tokens  # imported here, because they need an extra

        issuer_keys = IssuerKeys(config.oidc_issuer)
        issuer_keys.start()
        tokens = Tokens(config, issuer_keys)
        if metrics:
            metrics.add_gauge("issuer_keys_age_seconds", issuer_keys.age_seconds)
    if callers and metrics:
        metrics.add_gauge("keys_file_ok", callers.is_file_ok)
    keys = callers.current if callers else None
    return Auth(keys, tokens)


def _metrics(config: Config) -> "tuple[Metrics | None, MetricsPage | None]":
    """Returns the metrics and their page, or None when they are off. The supervisor of several workers has the page."""
    if not config.metrics_address:
        return None, None
    from caseload_server.observability.metrics import Metrics
    from caseload_server.observability.metrics_page import (
        MetricsPage,
    )  # imported here, because servers without metrics need no prometheus_client

    metrics = Metrics(config.worker)
    logs.set_event_counter(metrics.count_log_event)
    return metrics, MetricsPage(config.metrics_address, metrics.registry) if config.worker is None else None


def _tracing(config: Config) -> "Tracing | None":
    """Returns what creates spans, or None when the OTEL_* variables ask for none. Raises SettingError."""
    if not wants_traces(os.environ):
        return None
    try:
        from caseload_server.observability.tracing import Tracing  # servers without traces need no opentelemetry
    except ImportError:
        # Not an error: an operator of a cluster may set the variables for all programs.
        _log.warning("traces unavailable", missing="caseload-server[otel]")
        return None
    return Tracing("postgresql" if is_postgres(config.database) else "sqlite")


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if not (config.tls_cert and config.tls_key):
        return None
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca).credentials()


def _access_log_sink(config: Config) -> LogSink:
    if not config.access_log:
        return logs.ConsoleSink() if sys.stderr.isatty() else logs.STDERR
    try:
        return LogFile(config.access_log)
    except OSError:
        raise SettingError("--access-log", "cannot be written") from None


def _channel_options(config: Config) -> list[tuple[str, int]]:
    """Returns the options of the gRPC C core, which enforces the limits on connections and messages.

    https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
    """
    return [
        ("grpc.so_reuseport", int(config.workers > 1)),  # otherwise a second server could share the port unnoticed
        ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES),  # between the two, grpc would reject at random
        # One connection may carry every watch that can be open, and other calls beside them.
        ("grpc.max_concurrent_streams", config.max_watches + limits.MAX_CALLS_PER_CONNECTION),
        # Bytes that a caller may send before the server asks for the message. The probe would raise it to megabytes.
        ("grpc.http2.lookahead_bytes", limits.LOOKAHEAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        # This protection also counts ended calls until they are cleaned up, so it would reject a caller that keeps to
        # the limit. max_pending_requests below limits the calls that callers cancel as soon as they begin.
        ("grpc.http.overload_protection", 0),
        # When the process has no time to accept calls to a method, the library rejects what exceeds a burst.
        ("grpc.server.max_pending_requests", config.max_watches + 1000),
        ("grpc.server.max_pending_requests_hard_limit", config.max_watches + 1000),
        ("grpc.max_allowed_incoming_connections", max_connections(config)),
        ("grpc.server_handshake_timeout_ms", limits.HANDSHAKE_TIMEOUT_MS),
        ("grpc.http2.settings_timeout", limits.HANDSHAKE_TIMEOUT_MS),  # until then the metadata limit does not apply
        ("grpc.max_connection_idle_ms", limits.MAX_CONNECTION_IDLE_MS),
        ("grpc.keepalive_time_ms", limits.KEEPALIVE_INTERVAL_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
        *_age_options(config.connection_age_seconds()),
    ]


def _age_options(age_seconds: float) -> list[tuple[str, int]]:
    """Returns the options that close old connections. The library varies the age by 10 %, to spread the reconnects.

    A watch can begin just before its connection reaches its age, and may then last as long again.
    """
    if not age_seconds:
        return []
    grace_seconds = age_seconds + limits.CONNECTION_AGE_GRACE_SECONDS
    return [
        ("grpc.max_connection_age_ms", int(age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(grace_seconds * 1000)),
    ]


def _bind(server: grpc.Server, config: Config, credentials: grpc.ServerCredentials | None) -> str:
    host, port = config.host_and_port()
    requested = f"{host}:{port}"
    try:
        port = server.add_secure_port(requested, credentials) if credentials else server.add_insecure_port(requested)
    except RuntimeError:
        raise SettingError("--address", CANNOT_LISTEN) from None
    return f"{host}:{port}"
