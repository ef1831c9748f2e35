"""The one place that knows every part."""

import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, Final

import grpc
from caseload.v1 import (
    assignment_service_pb2,
    assignment_service_pb2_grpc,
    change_service_pb2,
    change_service_pb2_grpc,
    patient_service_pb2,
    patient_service_pb2_grpc,
    therapist_service_pb2,
    therapist_service_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.config import Config, SettingError
from service.interceptors.guard import GuardedServer
from service.interceptors.streams import StreamsServer
from service.opening import open_store
from service.readiness import Readiness
from service.servicers.assignment import AssignmentServicer
from service.servicers.change import ChangeServicer
from service.servicers.pages import PageTokens
from service.servicers.patient import PatientServicer
from service.servicers.therapist import TherapistServicer
from service.servicers.watches import Watches
from service.store import RelationshipStore
from service.threads import Threads

LIVENESS: Final = ""
READINESS: Final = tuple(
    service.full_name
    for file in (assignment_service_pb2, change_service_pb2, patient_service_pb2, therapist_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


def clock() -> int:
    """Microseconds since 1970 (UTC)."""
    return time.time_ns() // 1000


class CaseloadServer:
    """A server with everything in its place, to be started and stopped once."""

    def __init__(
        self, config: Config, server: grpc.Server, threads: Threads, address: str, store: RelationshipStore
    ) -> None:
        """Args: server, bound to address; threads, those of its calls; store, open."""
        self.address: Final = address
        self._config = config
        self._server = server
        self._threads = threads
        self._store = store
        self._streams = StreamsServer(server, futures.ThreadPoolExecutor(32, "reflection"))
        self._readiness = Readiness(store.check, self._set_readiness)
        self._watches = Watches(store, config.max_watches)
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=futures.ThreadPoolExecutor(1, "health")
        )

    def register(self, clock: Callable[[], int]) -> None:
        """Puts the services on the server."""
        pages = PageTokens(self._store.keys.secret)
        # A few threads more than watches, so that one too many is refused and does not wait.
        guarded: Any = GuardedServer(self._server, futures.ThreadPoolExecutor(self._config.max_watches + 4, "watch"))
        therapists = TherapistServicer(self._store, pages, clock)
        therapist_service_pb2_grpc.add_TherapistServiceServicer_to_server(therapists, guarded)
        patients = PatientServicer(self._store, pages, clock)
        patient_service_pb2_grpc.add_PatientServiceServicer_to_server(patients, guarded)
        periods = AssignmentServicer(self._store, pages, clock)
        assignment_service_pb2_grpc.add_AssignmentServiceServicer_to_server(periods, guarded)
        changes = ChangeServicer(self._store, self._watches)
        change_service_pb2_grpc.add_ChangeServiceServicer_to_server(changes, guarded)
        streams: Any = self._streams
        health_pb2_grpc.add_HealthServicer_to_server(self._health, streams)
        reflection.enable_server_reflection((*READINESS, health.SERVICE_NAME, reflection.SERVICE_NAME), streams)

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()
        self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        self._set_readiness(True)
        self._readiness.start()

    def stop(self) -> None:
        """Stops without losing a call: readiness goes, calls drain, then the store is closed."""
        self._readiness.stop()
        self._set_readiness(False)
        time.sleep(self._config.drain_seconds)
        self._watches.close()
        stopped = self._server.stop(self._config.grace_seconds)
        self._streams.end()  # health watches and open reflection would last the whole grace period
        stopped.wait()
        self._threads.shutdown()
        self._store.close()

    def _set_readiness(self, ready: bool) -> None:  # noqa: FBT001 - as Readiness tells it
        states = health_pb2.HealthCheckResponse
        for name in READINESS:
            self._health.set(name, states.SERVING if ready else states.NOT_SERVING)


def build_server(config: Config, clock: Callable[[], int] = clock) -> CaseloadServer:
    """A server bound to its port, with its database open and migrated. Raises SettingError; nothing is left then."""
    config.check()
    threads = Threads(config.threads, "call")
    options = [("grpc.so_reuseport", 0)]  # or a second server would take the port unseen
    server = grpc.server(threads, options=options)  # type: ignore[arg-type]  # asks for a ThreadPoolExecutor
    try:
        address = _bind(server, config)
        store = open_store(config, clock)
    except SettingError:
        server.stop(None)
        threads.shutdown()
        raise
    built = CaseloadServer(config, server, threads, address, store)
    built.register(clock)
    return built


def _bind(server: grpc.Server, config: Config) -> str:
    host, port = config.host_and_port()
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise SettingError("--address", "cannot be listened on: in use, or not of this machine") from None
    return f"{host}:{port}"
