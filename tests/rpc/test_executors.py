"""Which threads run a call, and how they are shared between callers."""

from pathlib import Path

import pytest
from caseload_server.rpc.admission import Duration
from caseload_server.rpc.executors import FairExecutor
from caseload_server.rpc.server import CaseloadServer

from tests.rpc.two_callers import two_callers
from tests.support.api_driver import READS, RPCS, full_name
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS, eventually
from tests.support.write_lock import holding_the_lock, wait_for_locks


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)


def await_calls(executor: FairExecutor, running: int, waiting: int = 0) -> None:
    eventually(lambda: (executor.in_flight(), executor.queue_depth()) == (running, waiting))


def test_writes_of_one_caller_leave_threads_for_another(database_url: str, tmp_path: Path) -> None:
    with two_callers(database_url, tmp_path, threads=4) as (server, other, honest):
        writes = server._parts.executors.writes
        with holding_the_lock(database_url):
            calls = [other.create() for _ in range(5)]
            await_calls(writes, 2, waiting=3)
            calls.append(honest.create())
            await_calls(writes, 3, waiting=3)
        assert all(call.result() for call in calls)


def test_a_caller_is_shed_for_its_own_queue_and_not_for_that_of_another(database_url: str, tmp_path: Path) -> None:
    with two_callers(database_url, tmp_path, threads=2, max_queue_depth=4) as (server, other, honest):
        writes = server._parts.executors.writes
        with holding_the_lock(database_url):
            calls = [other.create() for _ in range(3)]
            await_calls(writes, 1, waiting=2)
            assert refusal(other.create().exception()).reason == "OVERLOADED"
            calls += [honest.create() for _ in range(3)]
            await_calls(writes, 2, waiting=4)
        assert all(call.result() for call in calls)


def test_transfers_of_one_caller_leave_the_threads_of_writes_alone(database_url: str, tmp_path: Path) -> None:
    with two_callers(database_url, tmp_path) as (server, other, honest):
        executors = server._parts.executors
        for therapist_id in ("t1", "t2"):
            honest.send("CreateTherapist", therapist_id=therapist_id, therapist={"display_name": "Ann Lee"})
        honest.send("CreatePatient", patient_id="p1", patient={"display_name": "Bob Ray"})
        honest.send("AssignPatient", therapist_id="t1", patient_id="p1")
        with holding_the_lock(database_url):
            transfers = [other.transfer() for _ in range(6)]
            await_calls(executors.bulk_writes, 2, waiting=4)
            created = honest.create()
            await_calls(executors.writes, 1)
        assert created.result()
        assert all(call.result() for call in transfers)


def test_reads_of_many_records_and_writes_of_many_have_threads_of_their_own(server: CaseloadServer) -> None:
    executors = server._parts.executors
    handlers = server._parts.grpc_server._state.registered_method_handlers  # type: ignore[attr-defined]
    for rpc in RPCS:
        many = rpc.startswith(("List", "Batch", "Transfer", "Delete", "Merge"))
        reads, writes = (executors.scans, executors.bulk_writes) if many else (executors.reads, executors.writes)
        expected = executors.watches if rpc == "WatchChanges" else reads if rpc in READS else writes
        handler = handlers[full_name(rpc)]
        assert (handler.unary_unary or handler.unary_stream).experimental_thread_pool is expected, rpc


def test_a_queued_call_that_cannot_end_before_its_deadline_is_shed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Duration, "expected", lambda _: HUNG_SECONDS - 20)
    with two_callers(database_url, tmp_path, threads=2) as (server, other, _):
        with holding_the_lock(database_url):
            at_once = other.create(timeout=HUNG_SECONDS)
            await_calls(server._parts.executors.writes, 1)
            late, early = other.create(timeout=HUNG_SECONDS - 30), other.create(timeout=2 * HUNG_SECONDS)
            assert refusal(late.exception()).reason == "OVERLOADED"
            await_calls(server._parts.executors.writes, 1, waiting=1)
        assert at_once.result()
        assert early.result()


def test_the_expected_duration_is_that_of_nearly_all_calls() -> None:
    duration = Duration()
    for number in range(1000):
        duration.add(0.2 if number % 2 else 0.1)
    assert 0.2 <= duration.expected() <= 0.3
