"""The asyncio client: one grpc.aio channel to all instances of Caseload, and the stubs of the four services."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import grpc.aio
from caseload.client.aio.calls import ChannelWithDefaults
from caseload.client.aio.watch import Responses, watch
from caseload.client.call_defaults import CallDefaults
from caseload.client.metadata import Key, client_metadata
from caseload.client.settings import File, Options, TlsFiles, channel_settings
from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from caseload.v1.change_service_pb2 import ChangeFilter, WatchChangesRequest
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub

if TYPE_CHECKING:  # these exist for type checkers only: at run time one stub serves both kinds of channel
    from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceAsyncStub
    from caseload.v1.change_service_pb2_grpc import ChangeServiceAsyncStub
    from caseload.v1.patient_service_pb2_grpc import PatientServiceAsyncStub
    from caseload.v1.therapist_service_pb2_grpc import TherapistServiceAsyncStub


class Caseload:
    """The stubs of the four services on one channel. Create one per event loop. Its tasks can share it."""

    def __init__(self, channel: grpc.aio.Channel, defaults: CallDefaults) -> None:
        """Wraps a channel. Use connect() to create a client."""
        self.channel: Final = channel
        self._closed = asyncio.Event()
        self._calls = ChannelWithDefaults(channel, defaults, self._closed)
        calls = cast("grpc.aio.Channel", self._calls)  # it has the two methods that stubs use
        self.therapists: Final[TherapistServiceAsyncStub] = TherapistServiceStub(calls)
        self.patients: Final[PatientServiceAsyncStub] = PatientServiceStub(calls)
        self.assignments: Final[AssignmentServiceAsyncStub] = AssignmentServiceStub(calls)
        self.changes: Final[ChangeServiceAsyncStub] = ChangeServiceStub(calls)

    def watch(self, after_revision: str = "", filter: ChangeFilter | None = None) -> Responses:  # noqa: A002 - the request's name
        """Yields the responses of WatchChanges, and resumes after a restart, a lost connection or a slow reader.

        The iterator ends when this client is closed. While it cannot connect, it retries without a limit, and logs one
        warning to the logger "caseload.client". Store the through_revision of each response after you processed it.
        After a restart of your service, pass it as after_revision.

        Args:
            after_revision: the last revision that you processed; empty to start from now.
            filter: the changes to receive; None for all.

        Raises grpc.aio.AioRpcError if the watch cannot be resumed, for instance with REVISION_PRUNED.
        """
        request = WatchChangesRequest(after_revision=after_revision, filter=filter)
        return watch(self.changes, request, self._closed, self._calls.last_connection_error)

    follow = watch

    async def close(self) -> None:
        """Ends all watches. Calls in flight fail with CANCELLED, and later calls raise ValueError."""
        self._closed.set()
        self._calls.cancel_calls()
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


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
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Options = (),
) -> Caseload:
    """Returns a client for all instances of a target, for the running event loop.

    The arguments are those of caseload.client.connect(), except that the interceptors are those of grpc.aio. A
    function as key runs in the event loop, so it must not wait: let a task renew the token that it returns.

    Raises ValueError if an argument is invalid or contradicts another, OSError if a file cannot be read, and
    RuntimeError if no event loop is running.
    """
    asyncio.get_running_loop()  # grpc.aio would make a channel for another loop, which then never answers
    defaults = CallDefaults(timeout, client_metadata(key, on_behalf_of))
    files = TlsFiles(tls_ca, tls_cert, tls_key)
    has_key = key is not None
    credentials, settings = channel_settings(target, files, options, has_key=has_key, allow_insecure=allow_insecure)
    # By name: instrumentation adds its own interceptors to the argument.
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, settings, interceptors=list(interceptors))
    else:
        channel = grpc.aio.secure_channel(target, credentials, settings, interceptors=list(interceptors))
    return Caseload(channel, defaults)
