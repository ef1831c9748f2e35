"""The health service of the grpc library, with the method List, which the library does not implement."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2


class HealthServicer(health.HealthServicer):
    """Reports the status of each service, and of the whole server under the empty name.

    https://github.com/grpc/grpc/blob/master/doc/health-checking.md
    """

    def __init__(self) -> None:
        """Starts with no service. `set` adds one."""
        # The non-blocking servicer sends while it holds its lock: a watcher that reads nothing would block the others.
        super().__init__(experimental_non_blocking=False)
        self._statuses: dict[str, Any] = {}

    def set(self, service: str, status: Any) -> None:
        """Sets the status of a service."""
        super().set(service, status)
        self._statuses[service] = health_pb2.HealthCheckResponse(status=status)

    def List(self, _request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802 - the name of the method
        """Returns a HealthListResponse with the status of every service."""
        messages: Any = health_pb2  # its type stubs lack this message
        return messages.HealthListResponse(statuses=dict(self._statuses))
