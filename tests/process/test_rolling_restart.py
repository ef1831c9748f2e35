"""Restarts and crashes as an application with the shipped client sees them. `make rolling` runs longer."""

import threading
from pathlib import Path
from typing import Any

import pytest
from caseload.client import connect
from caseload.v1 import change_service_pb2 as changes
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1.resources_pb2 import Patient

from tests.process.joining_instance import joined
from tests.process.rolling_restart import Instance, Report, alone, crashing, rolling
from tests.support.api_driver import number
from tests.support.waiting import HUNG_SECONDS, eventually, join

CALLS = 2000


def assert_nothing_lost(report: Report) -> None:
    print(report)
    assert list(report.faults()) == []
    assert report.restarts >= 2
    assert len(report.acknowledged) > CALLS / 3


def test_rolling_restarts_of_two_instances_fail_no_call(postgres_url: str) -> None:
    assert_nothing_lost(rolling(postgres_url, CALLS))


def test_killing_one_of_two_instances_fails_no_call_and_repeats_no_write(postgres_url: str) -> None:
    report = crashing(postgres_url, CALLS)
    assert_nothing_lost(report)
    assert report.retries, "no call was under way when it was killed: the test says little"


def test_a_third_instance_that_is_added_to_dns_gets_calls_and_none_fails(postgres_url: str) -> None:
    report, share = joined(postgres_url)
    assert list(report.faults()) == []
    assert share > 0


def test_restarting_a_single_instance_fails_no_call(database_url: str) -> None:
    assert_nothing_lost(alone(database_url, CALLS))


@pytest.mark.parametrize(
    ("report", "count"),
    [
        (Report(failed=["UNAVAILABLE"]), 1),
        (Report(acknowledged=["a.1"], written=["a.1", "a.2"]), 1),
        (Report(acknowledged=["a.1", "a.2"], written=["a.1"]), 1),
        (Report(acknowledged=["a.2", "a.1"], written=["a.1", "a.2"]), 0),
    ],
    ids=["failed", "written twice", "lost", "all well"],
)
def test_the_report_lists_each_fault(report: Report, count: int) -> None:
    assert len(list(report.faults())) == count


@pytest.mark.parametrize(("longest", "restart", "stalled"), [(0.9, 0.1, False), (1.4, 1.0, False), (1.6, 1.0, True)])
def test_a_call_stalls_when_it_outlasts_both_the_limit_and_the_restart(
    longest: float,
    restart: float,
    stalled: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    assert Report(longest=longest, longest_restart=restart).stalled == stalled


def test_a_watch_resumed_after_restarts_and_crashes_has_every_change_once(database_url: str, tmp_path: Path) -> None:
    instance = Instance(database_url, tmp_path)
    with connect(instance.address) as caseload:

        def write(count: int = 10) -> str:
            for _ in range(count):
                request = patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray"))
                last = caseload.patients.CreatePatient(request).revision
            return last

        sets: list[Any] = []
        caught_up = threading.Event()
        start = write(1)

        def read() -> None:
            for answer in caseload.watch(start):
                sets.extend(answer.change_sets)
                caught_up.set()

        reader = threading.Thread(target=read)
        reader.start()
        for disturb in (Instance.restart, Instance.crash, Instance.restart, Instance.crash):
            caught_up.clear()
            write()
            assert caught_up.wait(HUNG_SECONDS)
            writer = threading.Thread(target=write, args=(100,))
            writer.start()
            disturb(instance)
            join(writer)
        last = write(1)
        eventually(lambda: sets[-1].revision == last)
        log = caseload.changes.ListChanges(changes.ListChangesRequest(after_revision=start, page_size=1000)).change_sets
    join(reader)  # it ends with the connection
    instance.end()
    assert sets == list(log)
    assert [number(one.revision) for one in sets] == list(range(number(start) + 1, number(start) + 442))
