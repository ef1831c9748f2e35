"""Clients and server processes for tests."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from caseload.v1 import patient_service_pb2_grpc, therapist_service_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.ports import free_port
from tests.support.waiting import HUNG_SECONDS

START_SECONDS = HUNG_SECONDS
"""The timeout of a server start."""
NO_LOG = Path(os.devnull)
"""The access log of servers in the test process: a call that ends late would print its line between tests."""


def free_address() -> str:
    """A free address, for a process that must know its address before its log can be read."""
    return f"127.0.0.1:{free_port()}"


class Client:
    """A client of TherapistService and PatientService."""

    def __init__(self, address: str, *, alone: bool = False) -> None:
        """Args: alone, use a separate connection; otherwise clients of one address share a connection."""
        self.address = address
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", int(alone))])
        self.therapists = therapist_service_pb2_grpc.TherapistServiceStub(self.channel)
        self.patients = patient_service_pb2_grpc.PatientServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()


@dataclass
class Refusal:
    """The error of a failed call."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """The google.rpc messages by name, such as "RetryInfo"; the last one of each type."""


def refusal(error: grpc.RpcError) -> Refusal:
    """Parses the reason and details of a failed call."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it is a grpc.Call too
    assert status is not None, error
    details: dict[str, Any] = {}
    for packed in status.details:
        name = packed.TypeName().removeprefix("google.rpc.")
        message = getattr(error_details_pb2, name)()
        assert packed.Unpack(message)
        details[name] = message
    info = details["ErrorInfo"]
    assert info.domain == "caseload.v1"
    violations = details["BadRequest"].field_violations if "BadRequest" in details else []
    fields = [violation.field for violation in violations]
    return Refusal(error.code(), info.reason, status.message, dict(info.metadata), fields, details)


class ServerProcess:
    """`caseload serve` on a free port; ends with the with block."""

    def __init__(
        self,
        database: str,
        *arguments: str,
        command: Sequence[str] = (sys.executable, "-m", "caseload_server"),
        environment: dict[str, str] | None = None,
        access_log: str | None = os.devnull,
    ) -> None:
        """Args: database, its URL, which may hold a password and so is no argument of the process; access_log, None for
        standard error, which is a pipe here: a test that calls a lot must read it."""
        self._command = [*command, "serve", "--address", "127.0.0.1:0", "--drain-seconds", "0"]
        self._command += ["--access-log", access_log] if access_log else []
        self._command += arguments
        self._environment = {**os.environ, "CASELOAD_DATABASE": database, **(environment or {})}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        try:
            said = select.poll()
            said.register(self.process.stdout, select.POLLIN)
            line = self.process.stdout.readline() if said.poll(START_SECONDS * 1000) else f"{START_SECONDS} s went by\n"
        except BaseException:
            self.process.kill()
            raise
        if not line.startswith("caseload: serving on "):
            self.process.kill()
            _, log = self.process.communicate()
            raise AssertionError(f"did not start: {line}{log}")
        self.address = line.removeprefix("caseload: serving on ").strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def kill(self) -> None:
        """Kills the process immediately, like a crash."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(HUNG_SECONDS)

    def stop(self, *signals: int, timeout: float = HUNG_SECONDS) -> tuple[int, str]:
        """Sends the signals (default SIGTERM); returns the exit code and the log."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        _, log = self.process.communicate(timeout=timeout)
        return self.process.returncode, log
