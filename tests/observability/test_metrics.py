"""Metrics after real calls."""

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final

import grpc
import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.observability.metrics_client import numbers, wait_for_metrics
from tests.support.api_driver import ApiDriver, full_name, refused
from tests.support.waiting import HUNG_SECONDS

STORE: Final = [("store_seconds_count", "read"), ("store_seconds_count", "write")]


@pytest.fixture
def api(measured_server: CaseloadServer) -> ApiDriver:
    return ApiDriver(measured_server.address)


def test_calls_are_counted_by_method_and_code(measured_server: CaseloadServer, api: ApiDriver) -> None:
    api.therapists("t1", "t2")
    refused(api.send, "GetTherapist", therapist_id="unknown")
    counted = numbers(measured_server.metrics_address)
    assert counted("calls_total", method=full_name("CreateTherapist"), code="OK") == 2
    assert counted("calls_total", method=full_name("GetTherapist"), code="NOT_FOUND") == 1
    assert counted("calls_total") == 3
    assert counted("call_errors_total", reason="THERAPIST_NOT_FOUND") == counted("call_errors_total") == 1


def test_each_call_duration_is_in_one_bucket_of_its_method(measured_server: CaseloadServer, api: ApiDriver) -> None:
    began = time.perf_counter()
    api.therapists("t1", "t2")
    callers_seconds = time.perf_counter() - began
    counted = numbers(measured_server.metrics_address)
    of_method = {"method": full_name("CreateTherapist")}
    assert counted("call_seconds_count", **of_method) == counted("call_seconds_bucket", le="+Inf", **of_method) == 2
    assert 0 < counted("call_seconds_sum", **of_method) <= callers_seconds


@pytest.mark.slow
def test_an_open_watch_is_a_gauge_and_is_counted_when_it_ends(measured_server: CaseloadServer, api: ApiDriver) -> None:
    address = measured_server.metrics_address
    watch = api.watch()
    next(watch)
    open_now = wait_for_metrics(address, lambda seen: seen("watches") == 1)
    assert open_now("watches_limit") == 100
    assert open_now("calls_total", method=full_name("WatchChanges")) == 0
    watch.cancel()
    cancelled = {"method": full_name("WatchChanges"), "code": "CANCELLED"}
    ended = wait_for_metrics(address, lambda seen: (seen("watches"), seen("calls_total", **cancelled)) == (0, 1))
    assert ended("call_seconds_count", method=full_name("WatchChanges")) == 0


def test_metrics_report_readiness(measured_server: CaseloadServer) -> None:
    wait_for_metrics(measured_server.metrics_address, lambda seen: seen("ready") == 1)


def test_store_durations_are_reported_for_reads_and_writes(measured_server: CaseloadServer, api: ApiDriver) -> None:
    measured_server.expiry_sweeper.stop()  # their reads would count too
    measured_server.key_maker.stop()
    address = measured_server.metrics_address
    api.therapists("t1")
    before = numbers(address)
    api.send("GetTherapist", therapist_id="t1")
    api.send("ListTherapists")
    api.therapists("t2")
    after = numbers(address)
    counts = {(name, one): after(name, operation=one) - before(name, operation=one) for name, one in STORE}
    assert counts == {("store_seconds_count", "read"): 2, ("store_seconds_count", "write"): 1}
    assert after("store_seconds_sum", operation="write") > before("store_seconds_sum", operation="write")


def test_every_write_is_counted_in_a_commit(measured_server: CaseloadServer, api: ApiDriver) -> None:
    before = numbers(measured_server.metrics_address)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(api.therapists, (f"t{number}" for number in range(100))))
    after = numbers(measured_server.metrics_address)
    assert after("commit_writes_sum") - before("commit_writes_sum") == 100
    commits = after("commit_writes_count") - before("commit_writes_count")
    assert commits == after("commit_seconds_count") - before("commit_seconds_count")
    assert 100 / 8 <= commits <= 100


def test_metrics_describe_the_process(measured_server: CaseloadServer) -> None:
    seen = numbers(measured_server.metrics_address)
    assert seen("build_info", version=version("caseload-server")) == seen("workers") == 1
    assert time.time() - 2 * HUNG_SECONDS < seen("start_time_seconds") <= time.time()
    assert 20e6 < seen("resident_memory_bytes") < 2e9


def test_a_caller_cannot_create_a_time_series(measured_server: CaseloadServer, api: ApiDriver) -> None:
    """Otherwise a caller could exhaust memory or expose private values in labels."""
    before = {(one.name, *one.labels.items()) for one in numbers(measured_server.metrics_address).samples}
    for method in ("/caseload.v1.TherapistService/Ada Roe", "/Ada.Roe/Get", full_name("GetTherapist").lower()):
        ask: Any = api.channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as unknown:
            ask(b"", timeout=HUNG_SECONDS)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    refused(api.send, "GetTherapist", therapist_id="Ada Roe")
    after = numbers(measured_server.metrics_address)
    made = {(one.name, *one.labels.items()) for one in after.samples} - before
    assert made == {("caseload_calls_total", ("code", "INVALID_ARGUMENT"), ("method", full_name("GetTherapist")))}
    assert after("calls_total") == 1
