"""A gRPC server with scripted answers, for answers that a real server seldom gives. It records every attempt."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, NamedTuple

import grpc

from tests.support.waiting import HUNG_SECONDS

Answer = grpc.StatusCode | tuple[grpc.StatusCode, str]
"""A status, or a status with the value of grpc-retry-pushback-ms."""


class Attempt(NamedTuple):
    """One attempt that reached the server."""

    method: str
    data: bytes
    metadata: dict[str, Any]
    seconds_left: float
    peer: str
    """The address and port of the caller; each connection has another port."""


class FakeServer(grpc.GenericRpcHandler):
    """Gives each attempt the next scripted answer, and an empty message when no answer is left."""

    def __init__(self) -> None:
        self.address = ""
        self.stop: Callable[[], object] = lambda: None
        self.answers: list[Answer] = []
        self.attempts: list[Attempt] = []
        self.probes = 0
        """The health checks that reached the server. They are no attempts."""
        self.trailing: tuple[tuple[str, str | bytes], ...] = ()
        """Metadata that each scripted answer carries."""
        self.gates: dict[str, Event] = {}
        """Attempts of these methods are answered when the event is set."""

    def answer_with(self, *answers: Answer) -> "FakeServer":
        """Scripts the next answers, and forgets the attempts so far."""
        self.answers[:], self.attempts[:] = answers, []
        return self

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method).rpartition("/")[2]
        self.probes += method == "Check"
        if method in ("Check", "Watch") and method not in self.gates:
            return None  # the health service: clients treat a server without it as healthy

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            metadata: Any = dict(context.invocation_metadata())
            assert len(metadata) == len(context.invocation_metadata()), "a key was sent twice"
            self.attempts.append(Attempt(method, data, metadata, context.time_remaining(), context.peer()))
            if gate := self.gates.get(method):
                gate.wait(HUNG_SECONDS)
            self._abort_if_scripted(context)
            return b""

        def answer_stream(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            yield answer(data, context)

        if method == "WatchChanges":
            return grpc.unary_stream_rpc_method_handler(answer_stream)
        return grpc.unary_unary_rpc_method_handler(answer)

    def _abort_if_scripted(self, context: grpc.ServicerContext) -> None:
        if self.answers:
            answer = self.answers.pop(0)
            code, pushback = answer if isinstance(answer, tuple) else (answer, "")
            delay = (("grpc-retry-pushback-ms", pushback),) if pushback else ()
            context.set_trailing_metadata((*delay, *self.trailing))
            context.abort(code, "scripted")


@contextmanager
def fake_server(address: str = "127.0.0.1:0") -> Iterator[FakeServer]:
    """A fake server on loopback; the default is a free port."""
    handler = FakeServer()
    server = grpc.server(ThreadPoolExecutor(4), [handler])
    handler.address = f"{address.partition(':')[0]}:{server.add_insecure_port(address)}"
    handler.stop = lambda: server.stop(None).wait()
    server.start()
    yield handler
    handler.stop()
