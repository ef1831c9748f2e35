"""Load from h2load, which speaks gRPC when it is given gRPC's headers and framing.

h2load takes any HTTP 200 for a success, and gRPC sends its refusals with 200 too. So every run is held against what
refusals cannot give: their answers have no body, where ours have one of a known size, or leave a record behind.
"""

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from typing import NamedTuple

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


class Callers(NamedTuple):
    """How many ask at once."""

    connections: int
    each: int
    """Calls at once on each connection."""

    @property
    def total(self) -> int:
        """All together."""
        return self.connections * self.each


def is_there() -> bool:
    """Whether h2load is on PATH."""
    return shutil.which(PROGRAM) is not None


class Load(NamedTuple):
    """Who asks which server what."""

    server: Server
    call: Call
    callers: Callers
    core: int
    """The one h2load runs on."""

    def ask(self) -> bytes:
        """One answer as a real client gets it. Raises grpc.RpcError where the status is not OK."""
        with grpc.insecure_channel(self.server.address) as channel:
            ask: Callable[..., bytes] = channel.unary_unary(self.call.method)
            return ask(self.call.request, timeout=30)

    def run(self, count: int, answer: bytes) -> float:
        """Makes so many calls: calls a second. Raises LoadFailed.

        Args: answer, what a real client was answered.
        """
        request = self.call.request
        with tempfile.NamedTemporaryFile() as body:
            body.write(_FRAME_HEAD.pack(0, len(request)) + request)
            body.flush()
            command = self._command(count, body.name)
            report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout
        found = _REPORT.search(report)
        if not found or int(found["succeeded"]) != count:
            raise LoadFailed(f"{self.call.method}: calls failed\n{report}")
        if self.call.always_same and int(found["body_bytes"]) != count * (_FRAME_HEAD.size + len(answer)):
            raise LoadFailed(
                f"{self.call.method}: calls were refused, or answered otherwise than a client is\n{report}"
            )
        return float(found["rate"])

    def _command(self, count: int, body: str) -> list[str]:
        return [
            *("taskset", "--cpu-list", str(self.core), PROGRAM, "--threads=1", f"--requests={count}"),
            *(f"--clients={self.callers.connections}", f"--max-concurrent-streams={self.callers.each}"),
            *("--header=content-type: application/grpc", "--header=te: trailers", f"--data={body}"),
            f"http://{self.server.address}{self.call.method}",
        ]
