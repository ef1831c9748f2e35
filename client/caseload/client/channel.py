"""One channel to all instances of Caseload, and the four stubs on it."""

from collections.abc import Sequence
from threading import Event
from types import TracebackType
from typing import Any, Final, Self, cast

import grpc
from caseload.client.call_defaults import CallDefaults
from caseload.client.calls import ChannelWithDefaults
from caseload.client.metadata import client_metadata
from caseload.client.settings import File, Options, TlsFiles, channel_settings
from caseload.client.watch import Responses, watch
from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from caseload.v1.change_service_pb2 import ChangeFilter, WatchChangesRequest
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub


class Caseload:
    """The four services on one channel. Threads may share it. Keep one for the whole process."""

    def __init__(self, channel: grpc.Channel, defaults: CallDefaults) -> None:
        """Wraps a channel that connect() made."""
        self.channel: Final = channel
        self._closed = Event()
        self._calls = ChannelWithDefaults(channel, defaults, self._closed)
        calls = cast("grpc.Channel", self._calls)  # it has the two methods that stubs use
        self.therapists: Final[TherapistServiceStub] = TherapistServiceStub(calls)
        self.patients: Final[PatientServiceStub] = PatientServiceStub(calls)
        self.assignments: Final[AssignmentServiceStub] = AssignmentServiceStub(calls)
        self.changes: Final[ChangeServiceStub] = ChangeServiceStub(calls)

    def watch(self, after_revision: str = "", filter: ChangeFilter | None = None) -> Responses:  # noqa: A002 - the request's name
        """Yields the responses of WatchChanges, and resumes after a restart, a lost connection or a slow reader.

        It ends when this client is closed. Keep the through_revision of each response that you have processed, and pass
        it as after_revision next time. While it cannot connect it tries again, and logs one warning to the logger
        "caseload.client".

        Args:
            after_revision: the last revision that you have processed; empty starts from now.
            filter: which changes to send; None sends all.

        Raises grpc.RpcError where resuming does not help, such as REVISION_PRUNED.
        """
        request = WatchChangesRequest(after_revision=after_revision, filter=filter)
        return watch(self.changes, request, self._closed, self._calls.last_connection_error)

    follow = watch

    def close(self) -> None:
        """Ends all watches, and ends calls in flight with CANCELLED. Later calls raise ValueError."""
        self._closed.set()
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(  # noqa: PLR0913 - keyword arguments, each with a default
    target: str,
    *,
    key: str | None = None,
    tls_ca: File | None = None,
    tls_cert: File | None = None,
    tls_key: File | None = None,
    allow_insecure: bool = False,
    on_behalf_of: str | None = None,
    timeout: float = 10.0,
    interceptors: Sequence[Any] = (),
    options: Options = (),
) -> Caseload:
    """Returns a client for all instances behind a target. It connects at the first call, and again after each loss.

    Loopback uses plain text unless a tls_ argument is given. Every other target uses TLS unless allow_insecure is set.

    Args:
        target: a gRPC target: "dns:///caseload.example.org:50051" or "ipv4:192.0.2.1:50051,192.0.2.2:50051".
        key: the caller's API key, sent with each call.
        tls_ca: PEM file of the authority that issued the server's certificate. The default is the system's.
        tls_cert: PEM file of the client certificate with its chain.
        tls_key: PEM file of the client certificate's key.
        allow_insecure: allow plain text beyond loopback. A key is refused with it.
        on_behalf_of: the end user for whom all calls are made, if it is always the same one: an id in your system. For
            a single call, pass the metadata that caseload.client.on_behalf_of() returns.
        timeout: default deadline of a call with all its retries, in seconds. Watches have none.
        interceptors: client interceptors of the channel, for instance for tracing.
        options: channel options; they take precedence over the client's own.

    Raises ValueError where the arguments contradict each other, and OSError where a file cannot be read.
    """
    files = TlsFiles(tls_ca, tls_cert, tls_key)
    credentials, settings = channel_settings(target, key, files, options, allow_insecure=allow_insecure)
    if credentials is None:
        channel = grpc.insecure_channel(target, settings)
    else:
        channel = grpc.secure_channel(target, credentials, settings)
    defaults = CallDefaults(timeout, client_metadata(key, on_behalf_of))
    return Caseload(grpc.intercept_channel(channel, *interceptors), defaults)
