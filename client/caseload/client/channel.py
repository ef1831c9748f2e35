"""The synchronous client: one channel to all instances of Caseload, and the stubs of the four services."""

from collections.abc import Sequence
from threading import Event
from types import TracebackType
from typing import Any, Final, Self, cast

import grpc
from caseload.client.call_defaults import CallDefaults
from caseload.client.calls import ChannelWithDefaults
from caseload.client.metadata import Key, client_metadata
from caseload.client.settings import File, Options, TlsFiles, channel_settings
from caseload.client.watch import Responses, watch
from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from caseload.v1.change_service_pb2 import ChangeFilter, WatchChangesRequest
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub


class Caseload:
    """The stubs of the four services on one channel. Create one per process. Threads can share it."""

    def __init__(self, channel: grpc.Channel, defaults: CallDefaults) -> None:
        """Wraps a channel. Use connect() to create a client."""
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

        The iterator ends when this client is closed. While it cannot connect, it retries without a limit, and logs one
        warning to the logger "caseload.client". Store the through_revision of each response after you processed it.
        After a restart of your service, pass it as after_revision.

        Args:
            after_revision: the last revision that you processed; empty to start from now.
            filter: the changes to receive; None for all.

        Raises grpc.RpcError if the watch cannot be resumed, for instance with REVISION_PRUNED.
        """
        request = WatchChangesRequest(after_revision=after_revision, filter=filter)
        return watch(self.changes, request, self._closed, self._calls.last_connection_error)

    follow = watch

    def close(self) -> None:
        """Ends all watches. Calls in flight fail with CANCELLED, and later calls raise ValueError."""
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
    key: Key | None = None,
    tls_ca: File | None = None,
    tls_cert: File | None = None,
    tls_key: File | None = None,
    allow_insecure: bool = False,
    on_behalf_of: str | None = None,
    timeout: float = 10.0,
    interceptors: Sequence[Any] = (),
    options: Options = (),
) -> Caseload:
    """Returns a client for all instances of a target. It connects at the first call, and reconnects after a failure.

    The client uses plain text on loopback, unless a tls_ argument is given. For every other target it uses TLS, unless
    allow_insecure is set.

    Args:
        target: a gRPC target: "dns:///caseload.example.org:50051" or "ipv4:192.0.2.1:50051,192.0.2.2:50051".
        key: the API key or token of the caller, sent with each call. Beyond loopback it needs TLS. For tokens that
            expire, a function that returns the current one. Each call first runs it, in the caller's thread and outside
            the deadline, so it should fetch a token only when the last one expires. The call raises what it raises.
        tls_ca: PEM file of the CA certificate of the server. The default is the CA certificates of the system.
        tls_cert: PEM file of the client certificate with its chain.
        tls_key: PEM file of the private key of the client certificate.
        allow_insecure: allow plain text beyond loopback, without a key.
        on_behalf_of: the id, in your system, of the end user of all calls. For the user of a single call, pass the
            metadata that caseload.client.on_behalf_of() returns.
        timeout: the default deadline of a call with its retries, in seconds. Watches have none.
        interceptors: client interceptors of the channel, for instance for tracing.
        options: channel options, which take precedence over those of the client. The names are those of gRPC core:
            https://grpc.github.io/grpc/core/group__grpc__arg__keys.html

    Raises ValueError if an argument is invalid or contradicts another, and OSError if a file cannot be read.
    """
    defaults = CallDefaults(timeout, client_metadata(key, on_behalf_of))
    files = TlsFiles(tls_ca, tls_cert, tls_key)
    has_key = key is not None
    credentials, settings = channel_settings(target, files, options, has_key=has_key, allow_insecure=allow_insecure)
    if credentials is None:
        channel = grpc.insecure_channel(target, settings)
    else:
        channel = grpc.secure_channel(target, credentials, settings)
    return Caseload(grpc.intercept_channel(channel, *interceptors), defaults)
