"""Connections end after a while, so that callers find instances that were started later."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import connect
from caseload.v1.change_service_pb2 import WatchChangesResponse
from caseload.v1.therapist_service_pb2 import ListTherapistsRequest
from caseload_server.config import Config
from caseload_server.domain import errors, limits
from caseload_server.rpc.channel_options import _age_options

from tests.conftest import serving
from tests.security.server_fixture import LogReader
from tests.support.api_driver import ApiDriver
from tests.support.dns_server import DnsServer
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS, eventually, join

SHORT = {"max_connection_age_seconds": 0.5}


def lines(log: Path) -> list[dict[str, Any]]:
    return LogReader(log).lines()


@pytest.mark.parametrize(
    ("address", "given", "age"),
    [
        ("127.0.0.1:0", None, 0),
        ("[::1]:0", None, 0),
        ("0.0.0.0:0", None, 300),
        ("[::]:0", None, 300),
        ("127.0.0.1:0", 7.5, 7.5),
        ("0.0.0.0:0", 0, 0),
    ],
)
def test_connections_beyond_loopback_have_an_age_by_default(address: str, given: float | None, age: float) -> None:
    assert Config(address=address, max_connection_age_seconds=given).connection_age_seconds() == age


def test_a_connection_outlasts_every_watch_that_begins_on_it() -> None:
    ages = dict(_age_options(300))
    assert ages["grpc.max_connection_age_ms"] == 300_000
    assert ages["grpc.max_connection_age_grace_ms"] >= 300_000 + limits.CONNECTION_AGE_GRACE_SECONDS * 1000
    assert limits.CONNECTION_AGE_GRACE_SECONDS >= 60
    assert _age_options(0) == []


@pytest.mark.slow
def test_calls_move_to_a_new_connection_and_none_fails(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with serving(database_url, access_log=log, **SHORT) as server, ApiDriver(server.address, alone=True) as api:

        def call() -> int:
            api.send("ListTherapists")
            return len({line["peer"] for line in lines(log)}) >= 3

        eventually(call)
        assert {line["code"] for line in lines(log)} == {"OK"}


@pytest.mark.slow
def test_a_watch_ends_before_its_connection_does(database_url: str) -> None:
    with serving(database_url, **SHORT) as server, ApiDriver(server.address, alone=True) as api:
        with pytest.raises(grpc.RpcError) as caught:
            list(api.watch())
        found = refusal(caught.value)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert found.message == errors.ShuttingDown.aged


@pytest.mark.slow
def test_the_watch_of_the_shipped_client_resumes_and_misses_nothing(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    seen: list[str] = []

    def read(responses: Any) -> None:
        response: WatchChangesResponse
        for response in responses:
            seen.extend(change_set.revision for change_set in response.change_sets)

    with serving(database_url, access_log=log, **SHORT) as server, ApiDriver(server.address) as api:
        with connect(server.address) as caseload:
            start = api.head()
            reader = threading.Thread(target=read, args=(caseload.watch(after_revision=start),))
            reader.start()
            for number in range(60):
                api.therapists(f"t{number}")
                ended = [line for line in lines(log) if line.get("reason") == "SHUTTING_DOWN"]
                if len(ended) >= 3:
                    break
                threading.Event().wait(0.05)
            eventually(lambda: len(seen) == number + 1)
            eventually(lambda: [line for line in lines(log) if line.get("reason") == "SHUTTING_DOWN"])
        join(reader)
        assert seen == [change_set.revision for change_set in api.log(start)]


@pytest.mark.slow
def test_an_instance_that_is_added_to_dns_gets_calls(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with ExitStack() as stack:
        first = stack.enter_context(serving(database_url, **SHORT))
        port = int(first.address.rpartition(":")[2])
        stack.enter_context(serving(database_url, **{**SHORT, "address": f"127.0.0.2:{port}", "access_log": log}))
        names = stack.enter_context(DnsServer("127.0.0.1"))
        options = [("grpc.dns_min_time_between_resolutions_ms", 100)]
        caseload = stack.enter_context(connect(names.target(port), allow_insecure=True, options=options))
        caseload.therapists.ListTherapists(ListTherapistsRequest())
        names.addresses.append("127.0.0.2")

        def call() -> bool:
            caseload.therapists.ListTherapists(ListTherapistsRequest(), timeout=HUNG_SECONDS)
            return len(lines(log)) > 10

        eventually(call)
