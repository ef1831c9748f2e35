"""Keeps track of the open streams of grpcio's own services (health, reflection), so that a stop can cancel them.

Their callers decide how long such a stream lasts: it would keep a stopping server waiting for the whole grace period.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import grpc


class OpenStreams:
    """Registers handlers with a server, and keeps track of their open streams."""

    def __init__(self, server: grpc.Server) -> None:
        """Args: server, receives the handlers."""
        self._server = server
        self._lock = threading.Lock()
        self._open: set[grpc.ServicerContext] = set()
        self._cancelled = False

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Registers the handlers of one service. Args: service, its full name; handlers, by method name."""
        tracked = {name: self._track_handler(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, tracked)

    def cancel_all(self) -> None:
        """Cancels the open streams, and every stream that starts later."""
        with self._lock:
            self._cancelled = True
            streams = list(self._open)
        for context in streams:
            context.cancel()

    def _track_handler(self, handler: Any) -> Any:
        if handler.unary_stream:
            return handler._replace(unary_stream=self._track_calls(handler.unary_stream))
        if handler.stream_stream:
            return handler._replace(stream_stream=self._track_calls(handler.stream_stream))
        return handler

    def _track_calls(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)  # keeps the experimental_* attributes
        def tracked(request: Any, context: grpc.ServicerContext, *rest: Any) -> Any:
            with self._lock:
                self._open.add(context)
                cancelled = self._cancelled
            if not context.add_callback(functools.partial(self._untrack, context)):
                self._untrack(context)
            if cancelled:
                context.cancel()
            return call(request, context, *rest)

        return tracked

    def _untrack(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open.discard(context)
