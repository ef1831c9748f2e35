"""Builds the gRPC server from its parts, starts it and stops it."""

import os
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
from caseload_server.config import Config, SettingError, is_postgres, wants_traces
from caseload_server.listening import bind_error, cannot_listen
from caseload_server.observability import logs
from caseload_server.observability.access_log import AccessLog
from caseload_server.observability.clock_watch import ClockWatch
from caseload_server.observability.connections import Connections
from caseload_server.observability.head_log import HeadLog
from caseload_server.observability.readiness import LIVENESS_SERVICE, READINESS_SERVICES, Readiness
from caseload_server.open_files import max_connections
from caseload_server.rpc.admission import Admission
from caseload_server.rpc.channel_options import channel_options
from caseload_server.rpc.executors import Executors
from caseload_server.rpc.grpcio_compat import check_grpcio
from caseload_server.rpc.health_service import HealthServicer
from caseload_server.rpc.open_streams import OpenStreams
from caseload_server.rpc.pipeline import MethodExecutors, PipelineServer
from caseload_server.rpc.reflection_service import ReflectionServicer
from caseload_server.rpc.reloadable_files import ReloadableFiles
from caseload_server.security.auth import REFLECTION_SERVICES, Auth
from caseload_server.security.keys_file import Callers
from caseload_server.security.proxies import TrustedProxies
from caseload_server.security.tls import Certificates
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.expiry_sweeper import ExpirySweeper
from caseload_server.store.key_maker import KeyMaker

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
    files: ReloadableFiles
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
        self._clock_watch = ClockWatch()
        self._head_log = HeadLog(parts.store.log_head)
        self.expiry_sweeper: Final = ExpirySweeper(parts.store.end_expired, clock)
        self.key_maker: Final = KeyMaker(parts.store.key_catch_up.run)
        self._connections = Connections(int(parts.address.rpartition(":")[2]), max_connections(config))
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
        for name, count in self._connections.gauges():
            metrics.add_gauge(name, count)
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
        self.key_maker.start()
        self._connections.start()
        if self._parts.metrics:
            self._parts.metrics.start()
        if self._parts.metrics_page:
            self._parts.metrics_page.start()

    def reload(self) -> None:
        """Opens the access log again, and reads keys and certificates again. It can hang if a disk does."""
        _log.info("reloading")
        self._parts.files.reload()

    def stop(self, *, drain: bool = True) -> bool:
        """Stops without losing a call: becomes NOT_SERVING, drains, waits for open calls, then closes the store.

        Args: drain, waits config.drain_seconds before it rejects new calls. Returns whether every call has ended.
        """
        self._is_stopping = True
        self._set_readiness(False)
        self._readiness.stop()
        self._head_log.stop()
        self._connections.stop()
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
        self.key_maker.stop()
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
        self._clock_watch.check()
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
    files = ReloadableFiles(config)
    with ExitStack() as opened:
        admission = Admission(config.caller_share(), _proxies(config))
        opened.callback(admission.close)
        executors = Executors(config, admission, monotonic)
        opened.callback(executors.shutdown_and_wait, 0)
        grpc_server = grpc.server(executors.reads, options=channel_options(config))
        opened.callback(grpc_server.stop, None)
        address = _bind(grpc_server, config, files.credentials())
        metrics, page = _metrics(config)
        if metrics and files.certificates:
            _add_expiry_gauges(metrics, files.certificates)
        if page:
            opened.callback(page.close)
        auth = _auth(config, files.callers, metrics)
        opened.callback(auth.close)
        tracing = _tracing(config)
        if tracing:
            opened.callback(tracing.shutdown)
        store = open_store(config, clock, *(observer.store for observer in (metrics, tracing) if observer))
        opened.callback(store.close)
        access_log = AccessLog(files.open_access_log(config), metrics, tracing, required=config.access_log_required)
        opened.callback(access_log.close)
        parts = ServerParts(
            grpc_server, address, admission, executors, store, auth, access_log, files, metrics, tracing, page
        )
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
    return Auth(keys, tokens, _proxies(config), admits_forwarded=config.allow_insecure)


def _proxies(config: Config) -> TrustedProxies:
    return TrustedProxies(config.proxy_networks())


def _metrics(config: Config) -> "tuple[Metrics | None, MetricsPage | None]":
    """Returns the metrics and their page, or None when they are off. The supervisor of several workers has the page."""
    if not config.metrics_address:
        return None, None
    from caseload_server.observability.metrics import Metrics
    from caseload_server.observability.metrics_page import (
        MetricsPage,
    )  # imported here, because servers without metrics need no prometheus_client

    metrics = Metrics(config.worker)
    logs.set_event_counters(metrics.count_log_event, metrics.count_lost_event)
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


def _add_expiry_gauges(metrics: "Metrics", certificates: Certificates) -> None:
    for file, expiry_time in certificates.expiry_times().items():
        metrics.add_gauge("certificate_expiry_time_seconds", expiry_time, file=file)


def _bind(server: grpc.Server, config: Config, credentials: grpc.ServerCredentials | None) -> str:
    host, port = config.host_and_port()
    requested = f"{host}:{port}"
    try:
        port = server.add_secure_port(requested, credentials) if credentials else server.add_insecure_port(requested)
    except RuntimeError:
        error = bind_error(host, port, shared=config.workers > 1)
        if credentials and not error:
            raise SettingError("--tls-cert", "gRPC cannot use it, or --tls-key or --tls-client-ca") from None
        raise SettingError("--address", cannot_listen(error)) from None
    return f"{host}:{port}"
