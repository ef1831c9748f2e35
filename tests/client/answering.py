"""A gRPC server that is no Caseload: it answers as it is told, which a Caseload seldom does, and notes what came."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

Answer = grpc.StatusCode | tuple[grpc.StatusCode, str]
"""A status, perhaps with what grpc-retry-pushback-ms is to say."""


class Attempt(NamedTuple):
    """One that reached the server."""

    method: str
    data: bytes
    metadata: dict[str, Any]
    seconds_left: float


class Answering(grpc.GenericRpcHandler):
    """Gives each attempt the next of the answers, and after those an empty message."""

    def __init__(self) -> None:
        self.address = ""
        self.answers: list[Answer] = []
        self.attempts: list[Attempt] = []

    def told(self, *answers: Answer) -> "Answering":
        self.answers[:], self.attempts[:] = answers, []
        return self

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method).rpartition("/")[2]
        if method == "Watch":
            return None  # of health, which it does not know: then it counts as healthy

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            metadata: Any = dict(context.invocation_metadata())
            self.attempts.append(Attempt(method, data, metadata, context.time_remaining()))
            self._refuse(context)
            return b""

        def answer_once(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            yield answer(data, context)

        if method == "WatchChanges":
            return grpc.unary_stream_rpc_method_handler(answer_once)
        return grpc.unary_unary_rpc_method_handler(answer)

    def _refuse(self, context: grpc.ServicerContext) -> None:
        if self.answers:
            answer = self.answers.pop(0)
            code, pushback = answer if isinstance(answer, tuple) else (answer, "")
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),) if pushback else ())
            context.abort(code, "as told")


@contextmanager
def answering() -> Iterator[Answering]:
    handler = Answering()
    server = grpc.server(ThreadPoolExecutor(4), [handler])
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler
    server.stop(None).wait()
