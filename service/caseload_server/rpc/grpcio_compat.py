"""The only module that uses private names of grpcio: it receives a call's message before the call takes a thread.

By itself grpcio takes a thread and lets it wait for the message. A caller that never sends one keeps the thread, and a
few dozen such calls stop a server. Receiving first also saves each call two thread switches.

`grpcio_supported` compares the private functions with the ones known here. Where they differ, grpcio's own way is used,
without load shedding, and `warn_unsupported_grpcio` says so. The project pins grpcio to the range that was tested.
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
"""What grpcio submits to an executor: one of its functions, and that function's arguments."""

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
    """Whether grpcio has the private names used here, with the parameters known here."""
    private = vars(_server)
    return "_RECEIVE_MESSAGE_TOKEN" in private and all(
        name in private and list(signature(private[name]).parameters) == parameters
        for name, parameters in _PARAMETERS.items()
    )


_SUPPORTED: Final = grpcio_supported()


def warn_unsupported_grpcio() -> None:
    """Logs that calls are not shed, and that silent callers hold threads, where grpcio is not supported."""
    if not _SUPPORTED:
        _log.warning("load shedding is off: unsupported grpcio", grpcio=grpc.__version__)


class CallDone:
    """The part of a Future that grpcio's server uses: one callback, called once the call has ended."""

    __slots__ = ("_callback", "_first")

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Takes the callback, before or after the call has ended."""
        self._callback = callback
        self._arrive("callback")

    def finish(self) -> None:
        """Says that the call has ended."""
        self._arrive("end")

    def _arrive(self, event: str) -> None:
        # setdefault is atomic: whichever event comes second finds the other, and runs the callback.
        if self._first.setdefault("first", event) != event:
            self._callback(self)


def _runs_in_pool(args: Args) -> bool:
    in_pool = (_server._unary_response_in_pool, _server._stream_response_in_pool)
    return _SUPPORTED and bool(args) and args[0] in in_pool


def when_received(args: Args, proceed: Callable[[Args], Any]) -> None:
    """Calls `proceed` once the call's message has arrived, or the call has ended. Needs no thread until then."""
    # A stream of requests has another thunk: it is read as it comes.
    if not (_runs_in_pool(args) and args[4].__name__ == "unary_request"):
        proceed(args)
        return
    run, event, state, behavior, _, parse, write = args
    received = _server._receive_message(state, event.call, parse)

    def arrived(batch: Any) -> Any:
        outcome = received(batch)
        request, state.request = state.request, None

        def thunk() -> Any:
            return request if _server._is_rpc_state_active(state) else None  # nothing is done for a call that ended

        proceed(args if request is None else (run, event, state, behavior, thunk, parse, write))
        return outcome

    with state.condition:
        event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        state.due.add(_server._RECEIVE_MESSAGE_TOKEN)


def can_shed(args: Args) -> bool:
    """Whether the call can be rejected by `shed`: its handler has a `shed` function, and grpcio is supported."""
    return _runs_in_pool(args) and hasattr(args[3], "shed")


def shed(run: Callable[..., Any], args: Args, done: CallDone) -> None:
    """Runs the handler's `shed` function instead of the handler, in the thread that is here."""
    in_pool, event, state, behavior, thunk, *rest = args
    if thunk.__name__ == "unary_request":  # a call without a message: the thunk would wait for what this thread brings

        def thunk() -> Any:
            return b"" if _server._is_rpc_state_active(state) else None

    with suppress(BaseException):  # the thread must survive any error
        run(in_pool, event, state, behavior.shed, thunk, *rest)
    done.finish()
