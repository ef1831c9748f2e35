"""The HTTP server for the metrics page that Prometheus scrapes."""

import io
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from caseload_server.config import SettingError, host_and_port
from caseload_server.listening import cannot_listen

_PATH: Final = "/metrics"
_IDLE_TIMEOUT_SECONDS: Final = 5.0
"""A reader that is silent for longer is disconnected."""
_REQUEST_TIMEOUT_SECONDS: Final = 15.0
"""A reader that takes longer in total is disconnected."""
_MAX_READERS: Final = 16
"""Number of readers at once. A further one takes the slot of the oldest silent one, or else of the oldest one."""
_MAX_HEAD_BYTES: Final = 8192
"""Size of a request line and its headers together. A reader that sends more is disconnected."""
_PAUSE_SECONDS: Final = 0.1
"""Time between two pages, in which calls have the interpreter for themselves."""
_POLL_SECONDS: Final = 0.1
"""Time between two checks for readers that have exceeded a timeout, and for `close`."""


class MetricsPage:
    """Serves the metrics of a registry at /metrics, in a thread."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Binds the address, HOST:PORT. Requests are answered only after `start`. Raises SettingError."""
        host, port = host_and_port("--metrics-address", address)
        try:
            self._server = _PageServer(host.strip("[]"), port, _handler(registry))
        except OSError as error:
            raise SettingError("--metrics-address", cannot_listen(error)) from None
        self.address: Final = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics-page", daemon=True
        )

    def start(self) -> None:
        """Starts to answer requests."""
        self._thread.start()

    def close(self) -> None:
        """Stops answering, and releases the address."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _handler(metrics: CollectorRegistry) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = metrics
        timeout = _IDLE_TIMEOUT_SECONDS

        server: _PageServer

        def setup(self) -> None:
            super().setup()
            self.rfile = _RequestHead(self.rfile.detach())

        def do_GET(self) -> None:  # noqa: N802 - the name that http.server requires
            self.server.mark_asked(self.request)
            if self.path.partition("?")[0] == _PATH:
                self._send_page()
            else:
                self.send_error(404)

        def _send_page(self) -> None:
            reader, self.wfile = self.wfile, io.BytesIO()  # a slow reader does not keep others waiting for their turn
            with self.server.page_turn():
                super().do_GET()
            reader.write(self.wfile.getvalue())
            self.wfile = reader

    return Handler


class _RequestHead(io.BufferedReader):
    """What a reader sends. http.server would accept 100 headers of 64 KiB each."""

    _bytes_left = _MAX_HEAD_BYTES

    def readline(self, _size: int | None = -1, /) -> bytes:
        """Reads a line. Raises ConnectionAbortedError at the end of _MAX_HEAD_BYTES."""
        line = super().readline(self._bytes_left)
        self._bytes_left -= len(line)
        if not self._bytes_left:
            raise ConnectionAbortedError
        return line


class _Reader(NamedTuple):
    """A connection that has a thread. When there are too many, the first in this order is disconnected."""

    has_asked: bool
    """Whether its request has arrived. A silent connection is disconnected before others."""
    start_time: float


class _PageServer(socketserver.ThreadingTCPServer):
    """Uses one thread per reader, up to a limit, so that slow readers take no resources that calls need."""

    allow_reuse_address = True  # connections of an earlier server may still be in TIME_WAIT
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, handler: type[MetricsHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.Semaphore(_MAX_READERS)
        self._readers: dict[Any, _Reader] = {}
        self._generating = threading.Lock()
        self._next_page_time = 0.0
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._acquire_slot():
            self._readers[request] = _Reader(False, time.monotonic())
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could be started
                self._release_slot(request)
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release_slot(request)

    def mark_asked(self, request: Any) -> None:
        """Records that the request of a reader has arrived."""
        self._readers[request] = self._readers[request]._replace(has_asked=True)

    @contextmanager
    def page_turn(self) -> Iterator[None]:
        """Lets one thread at a time generate a page, with a pause after each. More threads would slow down calls."""
        with self._generating:
            time.sleep(max(0.0, self._next_page_time - time.monotonic()))
            try:
                yield
            finally:
                self._next_page_time = time.monotonic() + _PAUSE_SECONDS

    def _acquire_slot(self) -> bool:
        """Takes a free slot, or that of the reader that it disconnects. Returns whether it got one."""
        if self._slots.acquire(blocking=False):
            return True
        with suppress(ValueError):  # all have just ended
            _disconnect(min(dict(self._readers).items(), key=itemgetter(1))[0])
        return self._slots.acquire(timeout=_POLL_SECONDS)

    def _release_slot(self, request: Any) -> None:
        del self._readers[request]
        self._slots.release()

    def service_actions(self) -> None:
        """Disconnects readers that have exceeded the request timeout. serve_forever calls it every _POLL_SECONDS."""
        for request, reader in list(self._readers.items()):
            if time.monotonic() - reader.start_time > _REQUEST_TIMEOUT_SECONDS:
                _disconnect(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: an error here means that a reader has disconnected."""


def _disconnect(request: Any) -> None:
    with suppress(OSError):  # the reader has disconnected already
        request.shutdown(socket.SHUT_RDWR)
