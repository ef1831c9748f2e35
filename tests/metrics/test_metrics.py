"""What is counted, of calls that were really made."""

import pytest

from service.server import CaseloadServer
from tests.clinic import Clinic, full_name, refused
from tests.metrics.reading import numbers, until


@pytest.fixture
def clinic(measured_server: CaseloadServer) -> Clinic:
    return Clinic(measured_server.address)


def test_calls_are_counted_by_method_and_code(measured_server: CaseloadServer, clinic: Clinic) -> None:
    clinic.therapists("t1", "t2")
    refused(clinic.send, "GetTherapist", therapist_id="nobody")
    counted = numbers(measured_server.metrics_address)
    assert counted("calls_total", method=full_name("CreateTherapist"), code="OK") == 2
    assert counted("calls_total", method=full_name("GetTherapist"), code="NOT_FOUND") == 1
    assert counted("calls_total") == 3
    assert counted("refusals_total", reason="THERAPIST_NOT_FOUND") == counted("refusals_total") == 1


def test_the_time_of_each_call_is_in_one_bucket_of_its_method(measured_server: CaseloadServer, clinic: Clinic) -> None:
    clinic.therapists("t1", "t2")
    counted = numbers(measured_server.metrics_address)
    of_method = {"method": full_name("CreateTherapist")}
    assert counted("call_seconds_count", **of_method) == counted("call_seconds_bucket", le="+Inf", **of_method) == 2
    assert 0 < counted("call_seconds_sum", **of_method) < 10


def test_an_open_watch_is_seen_and_counted_when_it_ends(measured_server: CaseloadServer, clinic: Clinic) -> None:
    address = measured_server.metrics_address
    watch = clinic.watch()
    next(watch)
    open_now = until(address, lambda seen: seen("watches") == 1)
    assert open_now("watches_limit") == 100
    assert open_now("calls_total", method=full_name("WatchChanges")) == 0
    watch.cancel()
    ended = until(address, lambda seen: seen("watches") == 0)
    assert ended("calls_total", method=full_name("WatchChanges"), code="CANCELLED") == 1
    assert ended("call_seconds_count", method=full_name("WatchChanges")) == 0


def test_readiness_is_told(measured_server: CaseloadServer) -> None:
    until(measured_server.metrics_address, lambda seen: seen("ready") == 1)
