"""caseload.testing: the server, the fixtures and the faults that callers test with."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from uuid import uuid4

import grpc
import pytest
from caseload.client import Caseload, connect, error_info
from caseload.testing import CaseloadForTests
from caseload.v1.resources_pb2 import Identifier, Therapist
from caseload.v1.therapist_service_pb2 import CreateTherapistRequest, ListTherapistsRequest
from caseload_server.rpc.status_map import CODE_NAMES
from caseload_server.testing import FAULTS

from tests.support.waiting import HUNG_SECONDS

COMMAND = Path(sys.executable).with_name("caseload-test-server")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "test_referrals.py"


def names(store: CaseloadForTests, timeout: float = HUNG_SECONDS) -> list[str]:
    listed = store.client.therapists.ListTherapists(ListTherapistsRequest(), timeout=timeout)
    return [therapist.display_name for therapist in listed.therapists]


@pytest.mark.parametrize("test", ["one", "another"])
def test_each_test_has_an_empty_store(caseload_store: CaseloadForTests, test: str) -> None:
    assert names(caseload_store) == []
    caseload_store.add_therapist(test)
    assert names(caseload_store) == [test]


def test_an_emptied_store_takes_the_same_ids_and_request_ids_again(caseload_store: CaseloadForTests) -> None:
    therapist = Therapist(display_name="Ada Roe", identifiers=[Identifier(system="urn:licence", value="7")])
    request = CreateTherapistRequest(therapist=therapist, therapist_id="ada", request_id=str(uuid4()))
    first = caseload_store.client.therapists.CreateTherapist(request)
    caseload_store.clear()
    second = caseload_store.client.therapists.CreateTherapist(request)
    assert second.revision != first.revision
    assert names(caseload_store) == ["Ada Roe"]


def test_records_are_added_with_their_fields(caseload_store: CaseloadForTests) -> None:
    therapist = caseload_store.add_therapist("Ada Roe", max_active_patients=3)
    patient = caseload_store.add_patient("Jane Doe", email="jane@example.com")
    assignment = caseload_store.assign(therapist, patient, focus="sleep")
    assert (therapist.max_active_patients, patient.email, assignment.focus) == (3, "jane@example.com", "sleep")


def test_an_open_watch_yields_what_is_written_after_the_store_was_emptied(caseload_store: CaseloadForTests) -> None:
    caseload_store.add_therapist()
    answers = caseload_store.client.watch()
    next(answers)
    caseload_store.clear()
    therapist = caseload_store.add_therapist()
    changes = (change for answer in answers for one in answer.change_sets for change in one.changes)
    assert next(changes).therapist_id == therapist.therapist_id
    answers.close()


@pytest.fixture
def alone(caseload_store: CaseloadForTests) -> Iterator[Caseload]:
    """A client that repeats no call."""
    with connect(caseload_store.address, options=[("grpc.enable_retries", 0)]) as client:
        yield client


@pytest.mark.parametrize("reason", FAULTS)
def test_calls_fail_for_a_reason_until_the_block_ends(
    caseload_store: CaseloadForTests, alone: Caseload, reason: str
) -> None:
    request = CreateTherapistRequest(therapist=Therapist(display_name="Ada Roe"))
    with caseload_store.failing(reason), pytest.raises(grpc.RpcError) as caught:
        alone.therapists.CreateTherapist(request)
    assert (error_info(caught.value).reason, caught.value.code().name) == (reason, CODE_NAMES[reason])
    assert names(caseload_store) == []


def test_a_failure_of_a_few_attempts_is_repeated_by_the_client(caseload_store: CaseloadForTests) -> None:
    with caseload_store.failing("STORE_UNAVAILABLE", calls=2):
        caseload_store.add_therapist("Ada Roe")
    assert names(caseload_store) == ["Ada Roe"]


def test_calls_beyond_the_given_number_do_not_fail(caseload_store: CaseloadForTests, alone: Caseload) -> None:
    with caseload_store.failing("OVERLOADED", calls=1):
        with pytest.raises(grpc.RpcError):
            alone.therapists.ListTherapists(ListTherapistsRequest())
        alone.therapists.ListTherapists(ListTherapistsRequest())


def test_threads_may_control_the_server_at_the_same_time(caseload_store: CaseloadForTests) -> None:
    def control() -> None:
        for _ in range(20):
            caseload_store.clear()
            with caseload_store.failing("STORE_BUSY", calls=1):
                pass

    with ThreadPoolExecutor(4) as threads:
        for ended in [threads.submit(control) for _ in range(4)]:
            ended.result(HUNG_SECONDS)
    assert names(caseload_store) == []


def test_an_unknown_fault_is_an_error(caseload_store: CaseloadForTests) -> None:
    with pytest.raises(ValueError, match="THERAPIST_NOT_FOUND"), caseload_store.failing("THERAPIST_NOT_FOUND"):
        pass
    assert names(caseload_store) == []


def test_a_fault_inside_another_is_an_error_and_the_outer_one_stays(
    caseload_store: CaseloadForTests, alone: Caseload
) -> None:
    with caseload_store.failing("STORE_UNAVAILABLE"):
        with pytest.raises(RuntimeError, match="nested"), caseload_store.slow(2):
            pass
        with pytest.raises(grpc.RpcError):
            alone.therapists.ListTherapists(ListTherapistsRequest())
    with caseload_store.slow(0):
        assert names(caseload_store) == []


def test_a_slow_call_reaches_its_deadline(caseload_store: CaseloadForTests) -> None:
    with caseload_store.slow(2), pytest.raises(grpc.RpcError) as caught:
        names(caseload_store, timeout=0.1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert names(caseload_store) == []


@pytest.mark.slow
def test_a_call_whose_caller_is_gone_does_not_write_into_the_next_test(caseload_store: CaseloadForTests) -> None:
    """The call still waits when the block ends."""
    request = CreateTherapistRequest(therapist=Therapist(display_name="Ada Roe"))
    with caseload_store.slow(1), pytest.raises(grpc.RpcError):
        caseload_store.client.therapists.CreateTherapist(request, timeout=0.2)
    caseload_store.clear()
    time.sleep(1.5)  # longer than the call would wait
    assert names(caseload_store) == []


def test_a_call_that_waits_at_the_end_of_the_block_succeeds(caseload_store: CaseloadForTests) -> None:
    request = CreateTherapistRequest(therapist=Therapist(display_name="Ada Roe"))
    with caseload_store.slow(10 * HUNG_SECONDS):
        call = caseload_store.client.therapists.CreateTherapist.future(request, timeout=HUNG_SECONDS)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(0.2)
    assert call.result().therapist.display_name == "Ada Roe"


def test_a_server_that_has_crashed_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the killed server leaves its folder
    command = tmp_path / "caseload-test-server"
    command.write_text(f"#!/bin/sh\necho $$ > {quote(f'{tmp_path}/pid')}\nexec {quote(str(COMMAND))}\n")
    command.chmod(0o700)
    with CaseloadForTests(command, tmp_path / "log") as server:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=re.escape(str(tmp_path / "log"))):
                server.clear()


def test_a_restart_keeps_the_address_and_the_records(caseload_store: CaseloadForTests, alone: Caseload) -> None:
    caseload_store.add_therapist("Ada Roe")
    with caseload_store.stopped(), pytest.raises(grpc.RpcError) as caught:
        alone.therapists.ListTherapists(ListTherapistsRequest(), wait_for_ready=False)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    caseload_store.restart()
    assert names(caseload_store) == ["Ada Roe"]


def test_a_server_that_is_closed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with CaseloadForTests(COMMAND, tmp_path / "log") as server:
        server.add_patient()
        assert len(list(tmp_path.glob("caseload-*/caseload.db"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").read_text() == ""


def test_a_server_that_does_not_start_names_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "caseload-test-server"
    broken.write_text("#!/bin/sh\necho no module >&2\n")
    broken.chmod(0o700)
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path / "log"))):
        CaseloadForTests(broken, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "no module\n"


def test_a_server_that_has_ended_by_itself_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the killed server leaves its folder
    with CaseloadForTests(COMMAND, tmp_path / "log") as server:
        server._process.kill()
        server._process.wait(HUNG_SECONDS)
        with pytest.raises(RuntimeError, match=re.escape(str(tmp_path / "log"))):
            server.clear()


def run_example(folder: Path, server: Path) -> "subprocess.CompletedProcess[str]":
    """Runs the example of the docs as another team would, without the settings of this project."""
    shutil.copy(EXAMPLE, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--caseload-server={server}", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("server", [COMMAND.parents[1], COMMAND.with_name("caseload")], ids=["folder", "command"])
def test_the_example_passes_with_the_server_of_a_named_environment(tmp_path: Path, server: Path) -> None:
    ended = run_example(tmp_path, server)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "5 passed" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("exists", [True, False])
def test_an_environment_without_the_server_is_named(tmp_path: Path, exists: bool) -> None:  # noqa: FBT001 - a parameter of the test
    if exists:
        (tmp_path / "empty").mkdir()
    ended = run_example(tmp_path, tmp_path / "empty")
    assert ended.returncode == 1
    assert f"{tmp_path}/empty/bin/caseload-test-server does not exist" in ended.stdout
    assert "--caseload-server=PATH" in ended.stdout
