"""WatchChanges of one server: etcd's guarantees within one store, slots, heartbeats, slow readers."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer
from caseload_server.store.backends.postgres import database as postgres
from caseload_server.store.backends.sqlite import database as sqlite

from tests.api.client_calls import covers
from tests.conftest import serving
from tests.store.store_builders import fill
from tests.support.api_driver import PRIMARY, ApiDriver, number, refused
from tests.support.waiting import NEVER_SECONDS, eventually, join
from tests.support.watch_reader import WatchReader, await_unread, opened_watch, slowly_read, unread


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    with ApiDriver(server.address) as opened:
        yield opened


@pytest.fixture
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables heartbeats, so that no message arrives with one."""
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", NEVER_SECONDS)


@pytest.mark.usefixtures("no_heartbeats")
def test_the_first_message_arrives_at_once_with_a_resumable_revision(api: ApiDriver) -> None:
    api.therapists("t1")
    head = api.head()
    for after in ("", head):
        with WatchReader(api, after) as follower:
            follower.wait_for(1)
            assert (list(follower.messages[0].change_sets), follower.through) == ([], head)


def test_a_watch_returns_every_change_once_in_log_order(api: ApiDriver) -> None:
    start = api.head()
    with WatchReader(api) as follower:
        follower.wait_for(1)
        api.therapists("t1", "t2")
        api.patients("p1", "p2")
        api.assign("t1", "p1", role=PRIMARY)
        api.assign("t1", "p2")
        api.transfer("t1", "t2")
        follower.wait_through(api.head())
        assert follower.sets == list(api.log(start))
    assert [len(one.changes) for one in follower.sets] == [1, 1, 1, 1, 1, 1, 4]
    revisions = [number(message.through_revision) for message in follower.messages]
    assert revisions == sorted(revisions)


@covers("WatchChangesRequest.after_revision")
def test_a_watch_starts_after_any_revision(api: ApiDriver) -> None:
    start = api.head()
    api.patients(*(f"p{n}" for n in range(230)))
    whole = list(api.log())
    for after in (start, whole[0].revision, whole[150].revision, whole[-1].revision):
        with WatchReader(api, after) as follower:
            follower.wait_through(whole[-1].revision)
            assert follower.sets == whole[number(after) :]


def test_a_watch_can_be_resumed_from_each_of_its_messages(api: ApiDriver) -> None:
    start = api.head()
    with WatchReader(api, start) as follower:
        for n in range(12):
            api.patients(f"p{n}")
            follower.wait_through(api.head())
    whole = list(api.log())
    for message in follower.messages:
        with WatchReader(api, message.through_revision) as later:
            later.wait_through(whole[-1].revision)
            assert later.sets == whole[number(message.through_revision) :]


@covers("WatchChangesRequest.filter")
def test_a_watch_filter_matches_like_the_list_filter(api: ApiDriver) -> None:
    start = api.head()
    filters: list[dict[str, str]] = [
        {},
        {"therapist_id": "t1"},
        {"patient_id": "p2"},
        {"therapist_id": "t2", "patient_id": "p2"},
        {"actor": "local", "therapist_id": "t2"},
        {"actor": "unknown"},
    ]
    with ExitStack() as stack:
        followers = [stack.enter_context(WatchReader(api, start, **each)) for each in filters]
        api.therapists("t1", "t2")
        api.patients("p1", "p2")
        for pair in (("t1", "p1"), ("t1", "p2"), ("t2", "p2"), ("t2", "p1")):
            api.assign(*pair)
        expected = [list(api.log(start, 1000, **each)) for each in filters]
        assert [len(sets) for sets in expected] == [8, 3, 3, 1, 3, 0]
        for follower, sets in zip(followers, expected, strict=True):
            eventually(lambda follower=follower, sets=sets: len(follower.sets) >= len(sets))  # type: ignore[misc]
            assert follower.sets == sets


@pytest.mark.slow
def test_heartbeats_report_progress_when_the_filter_matches_nothing(
    api: ApiDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.HEARTBEAT_SECONDS < 30 - 5  # the contract promises at least one every 30 seconds
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.2)
    with WatchReader(api, actor="unknown") as follower:
        follower.wait_for(3)
        for n in range(5):
            api.patients(f"p{n}")
        head = api.head()
        follower.wait_through(head)
        follower.wait_for(len(follower.messages) + 2)
        assert follower.sets == []
    with WatchReader(api, follower.through) as resumed:
        resumed.wait_for(1)
        assert resumed.sets == []


@pytest.mark.usefixtures("no_heartbeats")
def test_a_filtered_watch_sends_nothing_before_its_heartbeat(api: ApiDriver) -> None:
    with WatchReader(api, patient_id="seen") as follower, WatchReader(api) as other:
        follower.wait_for(1)
        for n in range(5):
            api.patients(f"p{n}")
            other.wait_through(api.head())  # so that each commit wakes the watch
        api.patients("seen")
        follower.wait_for(2)
    assert [len(message.change_sets) for message in follower.messages] == [0, 1]


def test_sqlite_polls_for_commits_within_the_promised_50_ms() -> None:
    """SQLite does not notify of commits. The promise is 50 ms for a commit of the same process."""
    assert sqlite._POLL_SECONDS < 0.05


@pytest.mark.usefixtures("no_heartbeats")
def test_postgresql_notifies_of_a_commit_without_polling(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_POLL_SECONDS", NEVER_SECONDS)
    with serving(postgres_url) as server, ApiDriver(server.address) as api, WatchReader(api) as follower:
        follower.wait_for(1)
        for n in range(10):
            api.patients(f"p{n}")
            follower.wait_through(api.head())
        monkeypatch.undo()
        api.patients("last")  # wakes the listener thread, so that it notices the stop


@pytest.mark.slow
def test_a_watch_above_the_limit_is_rejected_until_another_client_disconnects(database_url: str) -> None:
    with serving(database_url, max_watches=2) as server, ApiDriver(server.address) as api:

        def taken() -> None:
            found = refused(next, api.watch())
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
            assert found.metadata == {"limit": "2"}

        with WatchReader(api) as stays, WatchReader(api) as goes:
            stays.wait_for(1)
            goes.wait_for(1)
            for _ in range(20):  # more than the server has threads
                taken()
            goes.cut()
            with ApiDriver(server.address) as another:
                opened = opened_watch(another)
                taken()
            expiring = opened_watch(api, seconds=1)  # the closed channel has freed its slot
            with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                list(expiring)
            cancelled = opened_watch(api)
            cancelled.cancel()
            opened_watch(api).cancel()
            del opened
            api.patients("p1")
            stays.wait_through(api.head())


def test_a_rejected_watch_takes_no_slot(database_url: str) -> None:
    with serving(database_url, max_watches=1) as server, ApiDriver(server.address) as api:
        for _ in range(10):
            assert refused(next, api.watch("x.1")).reason == "REVISION_FOREIGN"
            assert refused(next, api.watch(actor="\0")).reason == "INVALID_FIELD"
        assert next(api.watch()).through_revision == api.head()


@pytest.mark.slow
def test_calls_are_answered_while_every_watch_slot_is_taken(database_url: str) -> None:
    with serving(database_url) as server, ApiDriver(server.address) as api, ExitStack() as stack:
        followers = [stack.enter_context(WatchReader(api)) for _ in range(Config.max_watches)]
        for follower in followers:
            follower.wait_for(1)
        assert refused(next, api.watch()).reason == "TOO_MANY_WATCHES"
        api.patients("p1")
        for _ in range(100):  # benchmarks/watches.py measures their cost
            assert api.send("GetPatient", patient_id="p1").patient.patient_id == "p1"
        for follower in followers:
            follower.wait_through(api.head())


@pytest.mark.slow
def test_a_slow_reader_is_disconnected_with_a_reason_and_can_resume(database_url: str) -> None:
    with serving(database_url) as server, ApiDriver(server.address) as api:
        start = api.head()
        fill(server.store, sets=8, lines=3000)
        received: list[Any] = []
        with slowly_read(server, start) as stream, pytest.raises(grpc.RpcError) as caught:
            received.extend(stream)
        found = refused(_raise, caught.value)
        assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "WATCH_TOO_SLOW")
        assert 0 < len(received) < 8
        with WatchReader(api, received[-1].through_revision) as resumed:
            resumed.wait_through(api.head())
            sets = [number(one.revision) for message in received for one in message.change_sets]
            assert sets + [number(one.revision) for one in resumed.sets] == list(range(1, 9))


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.slow
def test_a_stuck_reader_does_not_delay_other_callers(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STUCK_READER_SECONDS", NEVER_SECONDS)
    with serving(database_url, max_watches=2) as server, ApiDriver(server.address) as api:
        start = api.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start), WatchReader(api) as other:
            await_unread(server, 0.5)
            for n in range(20):
                api.patients(f"p{n}")
                other.wait_through(api.head())
            await_unread(server, 0.5)


@pytest.mark.slow
def test_a_stuck_reader_is_disconnected_and_frees_its_slot(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STUCK_READER_SECONDS", 0.5)
    with serving(database_url, max_watches=1) as server, ApiDriver(server.address) as api:
        start = api.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start) as stream:
            await_unread(server, 0.1)
            eventually(lambda: not server._watches._open)
            monkeypatch.setattr(limits, "STUCK_READER_SECONDS", NEVER_SECONDS)
            with WatchReader(api, start) as next_one:
                next_one.wait_through(api.head())
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert caught.value.code() == grpc.StatusCode.CANCELLED


def test_a_stop_ends_the_wait_for_a_commit(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_POLL_SECONDS", NEVER_SECONDS)
    with serving(database_url) as server, ApiDriver(server.address) as api, WatchReader(api) as follower:
        api.patients("p1")
        follower.wait_through(api.head())
        server._watches.close()
        follower.join()
        join(server._watches._thread)


def test_a_purge_ends_only_watches_that_have_not_read_the_purged_changes(
    server: CaseloadServer, api: ApiDriver
) -> None:
    start = api.head()
    api.patients("p1", "p2")
    with WatchReader(api) as up_to_date:
        up_to_date.wait_for(1)
        server.store.purger.purge_changes(time.time_ns() // 1000 + 1)
        found = refused(next, api.watch(start))
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_PRUNED")
        assert found.metadata == {"oldest_revision": api.send("ListChanges").oldest_revision}
        api.patients("p3")
        up_to_date.wait_through(api.head())
    assert [one.actor for one in up_to_date.sets] == ["cli:purge", "local"]


def test_a_watch_never_splits_a_change_set(api: ApiDriver) -> None:
    api.therapists("t1", "t2")
    api.patients(*(f"p{n}" for n in range(20)))
    with WatchReader(api) as follower:
        follower.wait_for(1)
        movers = [threading.Thread(target=_shuttle, args=(api, f"p{n}", 3), name=f"mover-{n}") for n in range(4)]
        for mover in movers:
            mover.start()
        join(*movers)
        api.transfer("t1", "t2")
        follower.wait_through(api.head())
    revisions = [number(one.revision) for one in follower.sets]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
    moves = [one for one in follower.sets if one.method.endswith("TransferPatients")]
    assert all(len(one.changes) % 2 == 0 for one in moves)
    assert len(moves) >= 4


def _shuttle(api: ApiDriver, patient_id: str, times: int) -> None:
    for _ in range(times):
        api.assign("t1", patient_id)
        api.transfer("t1", "t2", patient_id)
        api.unassign("t2", patient_id)
