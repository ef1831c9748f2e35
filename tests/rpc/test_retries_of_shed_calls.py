"""Clients repeat a call that was shed after the delay that the server gives."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import connect
from caseload.v1 import patient_service_pb2, patient_service_pb2_grpc
from caseload.v1.resources_pb2 import Patient
from caseload_server.rpc import retry_delays

from tests.conftest import serving
from tests.observability.metrics_client import wait_for_metrics
from tests.rpc.shed_calls import answered, await_writes, creating
from tests.security.server_fixture import LogReader
from tests.support.api_driver import ApiDriver, full_name, refused
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS
from tests.support.write_lock import holding_the_lock, wait_for_locks

pytestmark = pytest.mark.slow

RETRYING = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.001s",
                    "maxBackoff": "0.001s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)
"""The service config of a client with almost no backoff of its own."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)


@pytest.fixture
def late_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the retry delay of shed calls to two seconds; by then even a busy machine has finished 20 ms of work."""
    monkeypatch.setattr(retry_delays, "MIN_DELAY_SECONDS", 2.0)
    monkeypatch.setattr(retry_delays, "MAX_DELAY_SECONDS", 30.0)


@pytest.mark.usefixtures("late_retries")
@pytest.mark.parametrize("shipped", [False, True], ids=["grpc", "shipped client"])
def test_clients_retry_after_the_delay_of_the_server(
    database_url: str,
    shipped: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The client's own backoff is a millisecond; without the server's delay, all five attempts would be shed."""
    with (
        serving(
            database_url,
            threads=1,
            max_queue_depth=1,
            queue_timeout_seconds=NEVER_SECONDS,
            metrics_address="127.0.0.1:0",
        ) as server,
        ApiDriver(server.address) as api,
        connect(server.address, timeout=HUNG_SECONDS) as caseload,
        grpc.insecure_channel(server.address, [("grpc.service_config", RETRYING)]) as channel,
    ):
        create = caseload.patients if shipped else patient_service_pb2_grpc.PatientServiceStub(channel)
        order = patient_service_pb2.CreatePatientRequest(patient_id="p2", patient=Patient(display_name="A"))
        with holding_the_lock(database_url):
            calls = [creating(api, "p0")]
            await_writes(server, 1)
            calls.append(creating(api, "p1"))
            await_writes(server, 1, waiting=1)
            calls.append(create.CreatePatient.future(order, timeout=HUNG_SECONDS))
            wait_for_metrics(server.metrics_address, lambda seen: seen("call_errors_total", reason="OVERLOADED") >= 1)
        assert answered(calls) == ["OK"] * 3


def test_grpc_does_not_retry_a_call_that_would_be_rejected_again(database_url: str, tmp_path: Path) -> None:
    log = LogReader(tmp_path / "access.log")
    with (
        serving(database_url, max_watches=1, access_log=log.path) as server,
        ApiDriver(server.address) as api,
        grpc.insecure_channel(server.address, [("grpc.service_config", RETRYING)]) as channel,
    ):
        held = api.watch()
        next(held)
        watch: Any = channel.unary_stream(full_name("WatchChanges"))
        assert refused(next, watch(b"", timeout=HUNG_SECONDS)).reason == "TOO_MANY_WATCHES"
        assert [line["reason"] for line in log.lines() if line["event"] == "call"] == ["TOO_MANY_WATCHES"]
        held.cancel()
