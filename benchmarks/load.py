"""Load from h2load, which can speak gRPC with the right headers and framing.

h2load counts any HTTP 200 as a success, and gRPC sends errors with 200 too. So every run checks what an error
cannot produce: a response body of a known size, or a stored record.
"""

import http.client
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

import grpc

from benchmarks.servers import Server

PROGRAM = "h2load"
PACKAGE = "nghttp2-client"
_FRAME_HEAD = struct.Struct(">BL")  # gRPC's message prefix: not compressed, and the length
_REPORT = re.compile(
    r"finished in \S+, (?P<rate>[\d.]+) req/s.*"
    r" (?P<succeeded>\d+) succeeded, 0 failed, 0 errored, 0 timeout.*"
    r"\((?P<body_bytes>\d+)\) data",
    re.DOTALL,
)


class LoadFailed(Exception):
    """Calls failed, so the measurement is invalid."""


class Call(NamedTuple):
    """The call to repeat."""

    method: str
    """Such as /caseload.v1.TherapistService/GetTherapist."""
    request: bytes
    always_same: bool
    """Whether every response has the same size."""
    headers: tuple[str, ...] = ()
    """Such as "authorization: Bearer x"."""

    @property
    def body(self) -> bytes:
        """The request with its gRPC prefix."""
        return _FRAME_HEAD.pack(0, len(self.request)) + self.request

    def options(self, file: str) -> list[str]:
        """Options of h2load. Args: file, the path of the request body."""
        headers = ("content-type: application/grpc", "te: trailers", *self.headers)
        return [*(f"--header={one}" for one in headers), f"--data={file}"]

    def size(self, answer: bytes) -> int:
        """The size of a response on the wire, in bytes."""
        return _FRAME_HEAD.size + len(answer)

    def send(self, address: str) -> bytes:
        """Makes one call with a real client. Returns the response. Raises grpc.RpcError."""
        with grpc.insecure_channel(address) as channel:
            send: Callable[..., bytes] = channel.unary_unary(self.method)
            return send(self.request, timeout=30, metadata=[tuple(one.split(": ", 1)) for one in self.headers])


class RestCall(NamedTuple):
    """A call of a REST server, in JSON over HTTP/1.1: a POST if there is a body, else a GET."""

    method: str
    """The URL path."""
    body: bytes
    always_same: bool

    def options(self, file: str) -> list[str]:
        """Options of h2load. Args: file, the path of the request body."""
        return ["--h1", *(["--header=content-type: application/json", f"--data={file}"] if self.body else [])]

    def size(self, answer: bytes) -> int:
        """The size of a response on the wire, in bytes."""
        return len(answer)

    def send(self, address: str) -> bytes:
        """Makes one call with a real client. Returns the response. Raises LoadFailed unless the status is 2xx."""
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            headers = {"content-type": "application/json"}
            connection.request("POST" if self.body else "GET", self.method, self.body or None, headers)
            response = connection.getresponse()
            answer = response.read()
        if response.status // 100 != 2:
            raise LoadFailed(f"{self.method}: answered with status {response.status}")
        return answer


class Callers(NamedTuple):
    """The concurrency of the load."""

    connections: int
    each: int
    """Concurrent calls on each connection."""

    @property
    def total(self) -> int:
        """Concurrent calls on all connections."""
        return self.connections * self.each


GET: Final = "/caseload.v1.TherapistService/GetTherapist"
CREATE: Final = "/caseload.v1.TherapistService/CreateTherapist"
MANY: Final = Callers(connections=8, each=8)
ONE: Final = Callers(connections=1, each=1)


def is_installed() -> bool:
    """Whether h2load is on PATH."""
    return shutil.which(PROGRAM) is not None


class Load(NamedTuple):
    """A load: server, call, concurrency and the cores of h2load."""

    server: Server
    call: Call | RestCall
    callers: Callers
    cores: int | str
    """The cores that h2load may run on."""

    def send(self) -> bytes:
        """Makes one call with a real client. Returns the response."""
        return self.call.send(self.server.address)

    def run(self, count: int, answer: bytes) -> float:
        """Makes count calls. Returns calls per second. Raises LoadFailed.

        Args: answer, the response that a real client got.
        """
        with tempfile.NamedTemporaryFile() as body:
            body.write(self.call.body)
            body.flush()
            command = self._command(count, body.name)
            report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout
        found = _REPORT.search(report)
        if not found or int(found["succeeded"]) != count:
            raise LoadFailed(f"{self.call.method}: calls failed\n{report}")
        if self.call.always_same and int(found["body_bytes"]) != count * self.call.size(answer):
            raise LoadFailed(
                f"{self.call.method}: calls were rejected, or their responses differ from a client's\n{report}"
            )
        return float(found["rate"])

    def _command(self, count: int, body: str) -> list[str]:
        return [
            *("taskset", "--cpu-list", str(self.cores), PROGRAM, "--threads=1", f"--requests={count}"),
            *(f"--clients={self.callers.connections}", f"--max-concurrent-streams={self.callers.each}"),
            *self.call.options(body),
            f"http://{self.server.address}{self.call.method}",
        ]
