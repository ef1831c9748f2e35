"""Receives a call's message before the call takes a thread. The only module that uses private names of grpcio.

grpcio itself takes a thread and lets it wait for the message. A caller that never sends one keeps the thread, and a few
dozen such calls stop a server. Receiving the message first also saves each call two thread switches.

`grpcio_supported` compares grpcio's private functions with those known here. When they differ, calls run as grpcio runs
them, without load shedding, and `warn_unsupported_grpcio` logs it. The project pins grpcio to the tested range.
"""

from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from typing import Any, Final

import grpc
import structlog
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_log = structlog.get_logger()

Args = tuple[Any, ...]
"""What grpcio submits to an executor: one of its functions, and then the arguments of that function."""

_POOL_PARAMETERS: Final = [
    *("rpc_event", "state", "behavior", "argument_thunk", "request_deserializer", "response_serializer")
]
_PARAMETERS: Final = {
    "_is_rpc_state_active": ["state"],
    "_receive_message": ["state", "call", "request_deserializer"],
    "_unary_response_in_pool": _POOL_PARAMETERS,
    "_stream_response_in_pool": _POOL_PARAMETERS,
}


def grpcio_supported() -> bool:
    """Returns whether grpcio has the private names used here, with the same parameters."""
    private = vars(_server)
    return "_RECEIVE_MESSAGE_TOKEN" in private and all(
        name in private and list(signature(private[name]).parameters) == parameters
        for name, parameters in _PARAMETERS.items()
    )


_SUPPORTED: Final = grpcio_supported()


def warn_unsupported_grpcio() -> None:
    """Logs a warning when grpcio is not supported: no call is shed, and callers that send no message hold threads."""
    if not _SUPPORTED:
        _log.warning("load shedding is off: unsupported grpcio", grpcio=grpc.__version__)


class CallDone:
    """The part of a Future that grpcio's server uses: one callback, which runs once the call has ended."""

    __slots__ = ("_callback", "_first")

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Sets the callback. Runs it at once when the call has already ended."""
        self._callback = callback
        self._arrive("callback")

    def finish(self) -> None:
        """Marks the call as ended."""
        self._arrive("end")

    def _arrive(self, event: str) -> None:
        # setdefault is atomic: the event that comes second sees the first one, and runs the callback.
        if self._first.setdefault("first", event) != event:
            self._callback(self)


def _runs_in_pool(args: Args) -> bool:
    in_pool = (_server._unary_response_in_pool, _server._stream_response_in_pool)
    return _SUPPORTED and bool(args) and args[0] in in_pool


def when_received(args: Args, proceed: Callable[[Args], Any]) -> None:
    """Calls `proceed` once the call's message has arrived or the call has ended. Takes no thread until then."""
    # A stream of requests has a different thunk, and is read while the call runs.
    if not (_runs_in_pool(args) and args[4].__name__ == "unary_request"):
        proceed(args)
        return
    run, event, state, behavior, _, parse, write = args
    received = _server._receive_message(state, event.call, parse)

    def arrived(batch: Any) -> Any:
        outcome = received(batch)
        request, state.request = state.request, None

        def thunk() -> Any:
            return request if _server._is_rpc_state_active(state) else None  # no work for a call that has ended

        proceed(args if request is None else (run, event, state, behavior, thunk, parse, write))
        return outcome

    with state.condition:
        event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        state.due.add(_server._RECEIVE_MESSAGE_TOKEN)


def can_shed(args: Args) -> bool:
    """Returns whether `shed` can reject the call: its handler has a `shed` function, and grpcio is supported."""
    return _runs_in_pool(args) and hasattr(args[3], "shed")


def shed(run: Callable[..., Any], args: Args, done: CallDone) -> None:
    """Runs the handler's `shed` function instead of the handler, in the current thread."""
    in_pool, event, state, behavior, thunk, *rest = args
    if (
        thunk.__name__ == "unary_request"
    ):  # no message has arrived, and this thunk would wait for the thread that receives it

        def thunk() -> Any:
            return b"" if _server._is_rpc_state_active(state) else None

    with suppress(BaseException):  # the thread must survive any error
        run(in_pool, event, state, behavior.shed, thunk, *rest)
    done.finish()
