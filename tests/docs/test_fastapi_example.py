"""docs/examples/fastapi_app.py, run by uvicorn: it never blocks its event loop, and ends cleanly."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
from caseload.testing import CaseloadForTests
from caseload_server.rpc.server import CaseloadServer
from grpc import StatusCode

from tests.client.fake_server import FakeServer, fake_server
from tests.docs.doc_blocks import ROOT
from tests.support.servers import free_address
from tests.support.type_checker import mypy
from tests.support.waiting import HUNG_SECONDS, eventually, join

pytestmark = pytest.mark.slow


class Application:
    """The example in a process of its own."""

    def __init__(self, url: str, process: "subprocess.Popen[str]") -> None:
        self.url = url
        self.process = process

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Returns the status and the JSON of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=HUNG_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return self.call("GET", "/changes")[0] == 200
        except urllib.error.URLError:
            return False

    def stop(self) -> tuple[int, str]:
        """Returns the exit code and the log."""
        self.process.send_signal(signal.SIGTERM)
        log, _ = self.process.communicate(timeout=HUNG_SECONDS)
        return self.process.returncode, log


@contextmanager
def running(target: str) -> Iterator[Application]:
    """The example, connected to this server."""
    host, port = free_address().split(":")
    command = [sys.executable, "-X", "dev", "-m", "uvicorn", "--app-dir", str(ROOT / "docs" / "examples")]
    with subprocess.Popen(
        [*command, "--host", host, "--port", port, "fastapi_app:app"],
        env=os.environ | {"APP_CASELOAD_TARGET": target},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        application = Application(f"http://{host}:{port}", process)
        try:
            eventually(application.answers)
            yield application
        finally:
            process.kill()


def test_the_example_answers_follows_changes_and_ends_cleanly(server: CaseloadServer) -> None:
    with running(server.address) as application:
        status, made = application.call("POST", "/patients", {"display_name": "Jane Doe"})
        assert (status, list(made)) == (201, ["patient_id"])

        def counted() -> bool:  # the watch may begin after the first patient, and then it never has that change
            application.call("POST", "/patients", {"display_name": "Joe Bloggs"})
            return bool(application.call("GET", "/changes")[1]["count"])

        eventually(counted)
        assert application.call("POST", "/patients", {"display_name": ""})[1]["reason"] == "INVALID_FIELD"
        assert application.call("GET", "/therapists/missing/patients") == (404, {"reason": "THERAPIST_NOT_FOUND"})
        code, log = application.stop()
    assert "Application shutdown complete." in log
    assert [line for line in log.splitlines() if "Error" in line or "Warning" in line or "never" in line] == []
    assert code in (0, -signal.SIGTERM)  # uvicorn ends itself by the signal that stopped it


def test_a_failure_of_the_store_is_no_mistake_of_the_caller(caseload_store: CaseloadForTests) -> None:
    with running(caseload_store.address) as application:
        with caseload_store.failing("STORE_UNAVAILABLE"):
            failed = application.call("POST", "/patients", {"display_name": "Jane Doe"})
        assert failed == (503, {"reason": "STORE_UNAVAILABLE"})
        application.stop()


def test_a_watch_that_cannot_continue_is_logged() -> None:
    with fake_server() as peer:
        peer.answer_with(StatusCode.PERMISSION_DENIED)
        with running(peer.address) as application:
            eventually(lambda: not peer.answers)
            _, log = application.stop()
    assert "the watch has ended" in log
    assert "PERMISSION_DENIED" in log


def test_a_slow_call_does_not_delay_the_requests_beside_it() -> None:
    """The slow call is answered only after the fast one, so an application that blocked would hang."""
    done: list[str] = []

    def call(name: str, application: Application, *arguments: Any) -> None:
        assert application.call(*arguments)[0] < 300
        done.append(name)

    with fake_server() as peer, running(peer.address) as application:
        gate = peer.gates["ListTherapistPatients"] = Event()
        slow = threading.Thread(target=call, args=("slow", application, "GET", "/therapists/t1/patients"))
        slow.start()
        eventually(lambda: methods(peer).count("ListTherapistPatients"))
        call("fast", application, "POST", "/patients", {"display_name": "Jane Doe"})
        gate.set()
        join(slow)
        application.stop()
    assert done == ["fast", "slow"]


def test_an_overloaded_server_is_answered_with_503(caseload_store: CaseloadForTests) -> None:
    with running(caseload_store.address) as application:
        with caseload_store.failing("OVERLOADED"):
            assert application.call("GET", "/therapists/t1/patients") == (503, {"reason": "OVERLOADED"})
        application.stop()


def methods(peer: FakeServer) -> list[str]:
    return [attempt.method for attempt in peer.attempts]


@pytest.mark.checkout
def test_the_example_is_typed() -> None:
    """`make types` checks the example too; this shows that it sees a mistake in it."""
    example = ROOT / "docs" / "examples" / "fastapi_app.py"
    assert "Success" in mypy(example.read_text())
    assert "comparison-overlap" in mypy(example.read_text().replace('"INVALID_FIELD"', '"INVALID_FEILD"'))
    assert "arg-type" in mypy(example.read_text().replace("ListTherapistPatientsRequest(", "GetTherapistRequest("))
    assert "await" in mypy(example.read_text().replace("await caseload.patients", "caseload.patients"))
