"""The HTTP server for the metrics page that Prometheus scrapes."""

import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from caseload_server.config import CANNOT_LISTEN, SettingError, host_and_port

_PATH: Final = "/metrics"
_IDLE_TIMEOUT_SECONDS: Final = 5.0
"""A reader that is silent for longer is disconnected."""
_REQUEST_TIMEOUT_SECONDS: Final = 15.0
"""A reader that takes longer in total is disconnected."""
_MAX_READERS: Final = 16
"""Number of readers at once. Further ones are disconnected."""
_POLL_SECONDS: Final = 0.1
"""Time between two checks for readers that have exceeded a timeout, and for `close`."""


class MetricsPage:
    """Serves the metrics of a registry at /metrics, in a thread."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Binds the address, HOST:PORT. Requests are answered only after `start`. Raises SettingError."""
        host, port = host_and_port("--metrics-address", address)
        try:
            self._server = _PageServer(host.strip("[]"), port, _handler(registry))
        except OSError:
            raise SettingError("--metrics-address", CANNOT_LISTEN) from None
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

        def do_GET(self) -> None:  # noqa: N802 - the name that http.server requires
            if self.path.partition("?")[0] == _PATH:
                super().do_GET()
            else:
                self.send_error(404)

    return Handler


class _PageServer(socketserver.ThreadingTCPServer):
    """Uses one thread per reader, up to a limit, so that slow readers take no resources that calls need."""

    allow_reuse_address = True  # connections of an earlier server may still be in TIME_WAIT
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, handler: type[MetricsHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.Semaphore(_MAX_READERS)
        self._start_times: dict[Any, float] = {}
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            self._start_times[request] = time.monotonic()
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

    def _release_slot(self, request: Any) -> None:
        del self._start_times[request]
        self._slots.release()

    def service_actions(self) -> None:
        """Disconnects readers that have exceeded the request timeout. serve_forever calls it every _POLL_SECONDS."""
        for request, start_time in list(self._start_times.items()):
            if time.monotonic() - start_time > _REQUEST_TIMEOUT_SECONDS:
                with suppress(OSError):  # the reader has disconnected already
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: an error here means that a reader has disconnected."""
