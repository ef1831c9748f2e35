"""Streams of the gRPC library's own services last as long as their callers like: a stop ends them."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import grpc


class OpenStreams:
    """Passes handlers on to a server, and knows the streams under way."""

    def __init__(self, server: grpc.Server) -> None:
        """Args: server, which the handlers end up in."""
        self._server = server
        self._lock = threading.Lock()
        self._open: set[grpc.ServicerContext] = set()
        self._ended = False

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Registers the handlers of one service."""
        known = {name: self._known(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, known)

    def end(self) -> None:
        """Cancels the streams under way, and those that still begin."""
        with self._lock:
            self._ended = True
            streams = list(self._open)
        for context in streams:
            context.cancel()

    def _known(self, handler: Any) -> Any:
        if handler.unary_stream:
            return handler._replace(unary_stream=self._noting(handler.unary_stream))
        if handler.stream_stream:
            return handler._replace(stream_stream=self._noting(handler.stream_stream))
        return handler

    def _noting(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(answer)  # keeps the experimental_* attributes
        def noted(request: Any, context: grpc.ServicerContext, *rest: Any) -> Any:
            with self._lock:
                self._open.add(context)
                ended = self._ended
            if not context.add_callback(functools.partial(self._forget, context)):
                self._forget(context)
            if ended:
                context.cancel()
            return answer(request, context, *rest)

        return noted

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open.discard(context)
