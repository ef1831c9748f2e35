"""A client that reads WatchChanges in a thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from caseload.v1 import change_service_pb2, change_service_pb2_grpc
from caseload_server.domain import limits
from caseload_server.rpc.grpcio_compat import IncomingCall
from caseload_server.rpc.server import CaseloadServer
from grpc_status import rpc_status

from tests.support.api_driver import ApiDriver, number
from tests.support.servers import Refusal, refusal
from tests.support.waiting import HUNG_SECONDS, eventually, join


class WatchReader:
    """An open watch that is read without delay; it ends with the with block."""

    def __init__(self, api: ApiDriver, after: str = "", **filters: str) -> None:
        """Args: filters, fields of the request's filter."""
        self.messages: list[Any] = []
        self.times: list[float] = []
        """The arrival time of each message, from time.monotonic()."""
        self.refusal: Refusal | None = None
        """The error with which the server ended the watch; None after cut()."""
        self._moved = threading.Condition()
        self._stream = api.watch(after, **filters)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def _read(self) -> None:
        try:
            for message in self._stream:
                with self._moved:
                    self.messages.append(message)
                    self.times.append(time.monotonic())
                    self._moved.notify_all()
        except grpc.RpcError as error:
            if rpc_status.from_call(error) is not None:  # type: ignore[arg-type]  # it is a grpc.Call too
                self.refusal = refusal(error)
        with self._moved:
            self._moved.notify_all()

    def cut(self) -> None:
        """Cancels the watch at any point."""
        self._stream.cancel()
        join(self._thread)

    def join(self) -> None:
        """Waits until the server has ended the watch."""
        join(self._thread)

    @property
    def sets(self) -> list[Any]:
        return [one for message in list(self.messages) for one in message.change_sets]

    @property
    def through(self) -> str:
        """The revision to resume from; empty before the first message."""
        return str(self.messages[-1].through_revision) if self.messages else ""

    def wait_for(self, messages: int = 1) -> Self:
        """Waits until this many messages have arrived."""
        with self._moved:
            assert self._moved.wait_for(lambda: len(self.messages) >= messages, HUNG_SECONDS), self.refusal
        return self

    def wait_through(self, revision: str, seconds: float = HUNG_SECONDS) -> float:
        """Waits until all changes up to a revision have arrived; returns that time.monotonic()."""

        def reached() -> bool:
            return bool(self.messages) and number(self.through) >= number(revision)

        with self._moved:
            assert self._moved.wait_for(reached, seconds), (self.refusal, self.through, revision)
            return next(
                at
                for at, message in zip(self.times, self.messages, strict=True)
                if number(message.through_revision) >= number(revision)
            )


@contextmanager
def unread(address: str, after: str) -> Iterator[Any]:
    """A watch whose messages are not read, with small client buffers."""
    options = [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 16 * 1024),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(address, options) as channel:
        stream = change_service_pb2_grpc.ChangeServiceStub(channel).WatchChanges(
            change_service_pb2.WatchChangesRequest(after_revision=after), timeout=2 * HUNG_SECONDS
        )
        yield stream
        stream.cancel()


def await_unread(server: CaseloadServer, seconds: float) -> None:
    """Waits until a message to one of the watches has been pending for this many seconds."""
    eventually(lambda: any(_unread_seconds(call) > seconds for call in server._parts.admission._open.copy()))


def _unread_seconds(call: IncomingCall) -> float:
    """How long the last message of a call has been pending, in seconds; negative if none is."""
    return limits.STUCK_READER_SECONDS - (call.stalls_at - time.monotonic())


@contextmanager
def slowly_read(server: CaseloadServer, after: str) -> Iterator[Any]:
    """A watch whose reader exceeds the server's limit for slow readers."""
    with unread(server.address, after) as stream, pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "SLOW_READER_SECONDS", 0.3)
        await_unread(server, 0.6)
        yield stream


def opened_watch(api: ApiDriver, seconds: float = 2 * HUNG_SECONDS) -> Any:
    """Waits for a free slot, then returns a watch after its first message. Args: seconds, the deadline."""

    def opened() -> Any:
        stream = api.stream(change_service_pb2.WatchChangesRequest(), seconds)
        with suppress(grpc.RpcError):
            next(stream)
            return stream

    return eventually(opened)


def first_answer(api: ApiDriver, rpc: str, after: str) -> Any:
    """Returns the response of ListChanges, or the first message of WatchChanges."""
    answer = api.send(rpc, after_revision=after)
    return next(answer) if rpc == "WatchChanges" else answer
