"""The HTTP page that Prometheus reads, at /metrics."""

import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from caseload_server.config import SettingError, host_and_port

_PATH: Final = "/metrics"
_IDLE_TIMEOUT_SECONDS: Final = 5.0
"""A reader that is silent for this long is disconnected."""
_REQUEST_TIMEOUT_SECONDS: Final = 15.0
"""A reader that takes longer in all is disconnected."""
_MAX_READERS: Final = 16
"""Readers at once; further ones are disconnected."""


class MetricsPage:
    """Serves the numbers as Prometheus reads them, at /metrics."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Takes the address, HOST:PORT, and serves nothing yet. Raises SettingError."""
        host, port = host_and_port("--metrics-address", address)
        try:
            self._server = _PageServer(host.strip("[]"), port, _handler(registry))
        except OSError:
            raise SettingError("--metrics-address", "cannot be listened on: in use, or not of this machine") from None
        self.address: Final = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Gives the address back."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _handler(numbers: CollectorRegistry) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = numbers
        timeout = _IDLE_TIMEOUT_SECONDS

        def do_GET(self) -> None:  # noqa: N802 - as http.server asks for it
            if self.path.partition("?")[0] == _PATH:
                super().do_GET()
            else:
                self.send_error(404)

    return Handler


class _PageServer(socketserver.ThreadingTCPServer):
    """A thread a reader, of a fixed number, so that readers who do not read take nothing that calls need."""

    allow_reuse_address = True  # what an earlier server's readers left behind keeps no new one from the port
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, handler: type[MetricsHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.Semaphore(_MAX_READERS)
        self._since: dict[Any, float] = {}
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            self._since[request] = time.monotonic()
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread to be had
                self._give_place(request)
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._give_place(request)

    def _give_place(self, request: Any) -> None:
        del self._since[request]
        self._places.release()

    def service_actions(self) -> None:
        """Ten times a second: ends those that have had their time."""
        for request, since in list(self._since.items()):
            if time.monotonic() - since > _REQUEST_TIMEOUT_SECONDS:
                with suppress(OSError):  # its end is there already
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a reader went away."""
