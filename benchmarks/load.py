"""Load from h2load, which speaks gRPC when it is given gRPC's headers and framing.

h2load takes any HTTP 200 for a success, and gRPC sends its refusals with 200 too. So every run is held against what
refusals cannot give: their answers have no body, where ours have one of a known size, or leave a record behind.
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
_FRAME_HEAD = struct.Struct(">BL")  # gRPC's: not compressed, and the length
_REPORT = re.compile(
    r"finished in \S+, (?P<rate>[\d.]+) req/s.*"
    r" (?P<succeeded>\d+) succeeded, 0 failed, 0 errored, 0 timeout.*"
    r"\((?P<body_bytes>\d+)\) data",
    re.DOTALL,
)


class LoadFailed(Exception):
    """Calls failed, so the run measured something else."""


class Call(NamedTuple):
    """What is asked, over and over."""

    method: str
    """Such as /caseload.v1.TherapistService/GetTherapist."""
    request: bytes
    always_same: bool
    """Every answer has the same size."""

    @property
    def body(self) -> bytes:
        """The request as it is sent."""
        return _FRAME_HEAD.pack(0, len(self.request)) + self.request

    def options(self, file: str) -> list[str]:
        """For h2load. Args: file, with the body."""
        return ["--header=content-type: application/grpc", "--header=te: trailers", f"--data={file}"]

    def size(self, answer: bytes) -> int:
        """Of an answer as it is sent."""
        return _FRAME_HEAD.size + len(answer)

    def ask(self, address: str) -> bytes:
        """One answer as a real client gets it. Raises grpc.RpcError where the status is not OK."""
        with grpc.insecure_channel(address) as channel:
            ask: Callable[..., bytes] = channel.unary_unary(self.method)
            return ask(self.request, timeout=30)


class RestCall(NamedTuple):
    """The same of a REST server, in JSON over HTTP/1.1: a POST where there is a body, else a GET."""

    method: str
    """The path."""
    body: bytes
    always_same: bool

    def options(self, file: str) -> list[str]:
        """For h2load. Args: file, with the body."""
        return ["--h1", *(["--header=content-type: application/json", f"--data={file}"] if self.body else [])]

    def size(self, answer: bytes) -> int:
        """Of an answer as it is sent."""
        return len(answer)

    def ask(self, address: str) -> bytes:
        """One answer as a real client gets it. Raises LoadFailed where the status is not 2xx."""
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            headers = {"content-type": "application/json"}
            connection.request("POST" if self.body else "GET", self.method, self.body or None, headers)
            response = connection.getresponse()
            answer = response.read()
        if response.status // 100 != 2:
            raise LoadFailed(f"{self.method}: answered with status {response.status}")
        return answer


class Callers(NamedTuple):
    """How many ask at once."""

    connections: int
    each: int
    """Calls at once on each connection."""

    @property
    def total(self) -> int:
        """All together."""
        return self.connections * self.each


GET: Final = "/caseload.v1.TherapistService/GetTherapist"
CREATE: Final = "/caseload.v1.TherapistService/CreateTherapist"
MANY: Final = Callers(connections=8, each=8)
ONE: Final = Callers(connections=1, each=1)


def is_there() -> bool:
    """Whether h2load is on PATH."""
    return shutil.which(PROGRAM) is not None


class Load(NamedTuple):
    """Who asks which server what."""

    server: Server
    call: Call | RestCall
    callers: Callers
    cores: int | str
    """Those that h2load may run on."""

    def ask(self) -> bytes:
        """One answer as a real client gets it."""
        return self.call.ask(self.server.address)

    def run(self, count: int, answer: bytes) -> float:
        """Makes so many calls: calls a second. Raises LoadFailed.

        Args: answer, what a real client was answered.
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
                f"{self.call.method}: calls were refused, or answered otherwise than a client is\n{report}"
            )
        return float(found["rate"])

    def _command(self, count: int, body: str) -> list[str]:
        return [
            *("taskset", "--cpu-list", str(self.cores), PROGRAM, "--threads=1", f"--requests={count}"),
            *(f"--clients={self.callers.connections}", f"--max-concurrent-streams={self.callers.each}"),
            *self.call.options(body),
            f"http://{self.server.address}{self.call.method}",
        ]
