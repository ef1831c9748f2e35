"""WatchChanges of one server: etcd's promises within one store, places, heartbeats, slow readers."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer, build_server
from caseload_server.store.backends.postgres import database as postgres
from caseload_server.store.backends.sqlite import database as sqlite

from tests.clinic import PRIMARY, Clinic, number, refused
from tests.following import Follower, await_unread, opened_watch, slowly_read, unread
from tests.services.calling import honours
from tests.store.ward import fill
from tests.waiting import NEVER_SECONDS, eventually, join


@contextmanager
def serving(url: str, **settings: Any) -> Iterator[CaseloadServer]:
    server = build_server(Config(address="127.0.0.1:0", database=url, drain_seconds=0, **settings))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def clinic(server: CaseloadServer) -> Iterator[Clinic]:
    with Clinic(server.address) as opened:
        yield opened


@pytest.fixture
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """None within the test, and so nothing that came with one."""
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", NEVER_SECONDS)


@pytest.mark.usefixtures("no_heartbeats")
def test_the_first_message_comes_at_once_with_a_revision_to_resume_from(clinic: Clinic) -> None:
    clinic.therapists("t1")
    head = clinic.head()
    for after in ("", head):
        with Follower(clinic, after) as follower:
            follower.wait_for(1)
            assert (list(follower.messages[0].change_sets), follower.through) == ([], head)


def test_every_change_comes_once_and_in_order_as_the_log_has_it(clinic: Clinic) -> None:
    start = clinic.head()
    with Follower(clinic) as follower:
        follower.wait_for(1)
        clinic.therapists("t1", "t2")
        clinic.patients("p1", "p2")
        clinic.assign("t1", "p1", role=PRIMARY)
        clinic.assign("t1", "p2")
        clinic.transfer("t1", "t2")
        follower.wait_through(clinic.head())
        assert follower.sets == list(clinic.log(start))
    assert [len(one.changes) for one in follower.sets] == [1, 1, 1, 1, 1, 1, 4]
    revisions = [number(message.through_revision) for message in follower.messages]
    assert revisions == sorted(revisions)


@honours("WatchChangesRequest.after_revision")
def test_a_watch_goes_on_after_any_revision(clinic: Clinic) -> None:
    start = clinic.head()
    clinic.patients(*(f"p{n}" for n in range(230)))
    whole = list(clinic.log())
    for after in (start, whole[0].revision, whole[150].revision, whole[-1].revision):
        with Follower(clinic, after) as follower:
            follower.wait_through(whole[-1].revision)
            assert follower.sets == whole[number(after) :]


def test_a_watch_may_be_resumed_from_each_of_its_messages(clinic: Clinic) -> None:
    start = clinic.head()
    with Follower(clinic, start) as follower:
        for n in range(12):
            clinic.patients(f"p{n}")
            follower.wait_through(clinic.head())
    whole = list(clinic.log())
    for message in follower.messages:
        with Follower(clinic, message.through_revision) as later:
            later.wait_through(whole[-1].revision)
            assert later.sets == whole[number(message.through_revision) :]


@honours("WatchChangesRequest.filter")
def test_a_filter_lets_through_what_it_says(clinic: Clinic) -> None:
    start = clinic.head()
    filters: list[dict[str, str]] = [
        {},
        {"therapist_id": "t1"},
        {"patient_id": "p2"},
        {"therapist_id": "t2", "patient_id": "p2"},
        {"actor": "local", "therapist_id": "t2"},
        {"actor": "nobody"},
    ]
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(clinic, start, **each)) for each in filters]
        clinic.therapists("t1", "t2")
        clinic.patients("p1", "p2")
        for pair in (("t1", "p1"), ("t1", "p2"), ("t2", "p2"), ("t2", "p1")):
            clinic.assign(*pair)
        expected = [list(clinic.log(start, 1000, **each)) for each in filters]
        assert [len(sets) for sets in expected] == [8, 3, 3, 1, 3, 0]
        for follower, sets in zip(followers, expected, strict=True):
            eventually(lambda follower=follower, sets=sets: len(follower.sets) >= len(sets))  # type: ignore[misc]
            assert follower.sets == sets


def test_heartbeats_tell_how_far_a_watch_is_while_its_filter_hides_everything(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.HEARTBEAT_SECONDS < 30 - 5  # promised: at least one every 30 seconds
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.2)
    with Follower(clinic, actor="nobody") as follower:
        follower.wait_for(3)
        for n in range(5):
            clinic.patients(f"p{n}")
        head = clinic.head()
        follower.wait_through(head)
        follower.wait_for(len(follower.messages) + 2)
        assert follower.sets == []
    with Follower(clinic, follower.through) as resumed:
        resumed.wait_for(1)
        assert resumed.sets == []


@pytest.mark.usefixtures("no_heartbeats")
def test_no_heartbeat_comes_before_its_time(clinic: Clinic) -> None:
    with Follower(clinic, patient_id="seen") as follower, Follower(clinic) as other:
        follower.wait_for(1)
        for n in range(5):
            clinic.patients(f"p{n}")
            other.wait_through(clinic.head())  # so that each is a commit to wake up for
        clinic.patients("seen")
        follower.wait_for(2)
    assert [len(message.change_sets) for message in follower.messages] == [0, 1]


def test_a_store_looks_for_news_more_often_than_is_promised() -> None:
    """SQLite tells nobody of a commit. Promised: 50 ms for one of the same process."""
    assert sqlite._POLL_SECONDS < 0.05


@pytest.mark.usefixtures("no_heartbeats")
def test_postgresql_tells_of_a_commit_before_anyone_looks(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_POLL_SECONDS", NEVER_SECONDS)
    with serving(postgres_url) as server, Clinic(server.address) as clinic, Follower(clinic) as follower:
        follower.wait_for(1)
        for n in range(10):
            clinic.patients(f"p{n}")
            follower.wait_through(clinic.head())
        monkeypatch.undo()
        clinic.patients("last")  # which wakes the thread that listens, so that it sees the stop


def test_one_watch_too_many_is_refused_and_a_place_is_free_again_after_a_client_goes(database_url: str) -> None:
    with serving(database_url, max_watches=2) as server, Clinic(server.address) as clinic:

        def taken() -> None:
            found = refused(next, clinic.watch())
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
            assert found.metadata == {"limit": "2"}

        with Follower(clinic) as stays, Follower(clinic) as goes:
            stays.wait_for(1)
            goes.wait_for(1)
            for _ in range(20):  # more than there are threads
                taken()
            goes.cut()
            with Clinic(server.address) as another:
                opened = opened_watch(another)
                taken()
            expiring = opened_watch(clinic, seconds=1)  # its place came free with the channel
            with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                list(expiring)
            cancelled = opened_watch(clinic)
            cancelled.cancel()
            opened_watch(clinic).cancel()
            del opened
            clinic.patients("p1")
            stays.wait_through(clinic.head())


def test_a_refused_watch_takes_no_place(database_url: str) -> None:
    with serving(database_url, max_watches=1) as server, Clinic(server.address) as clinic:
        for _ in range(10):
            assert refused(next, clinic.watch("x.1")).reason == "REVISION_FOREIGN"
            assert refused(next, clinic.watch(actor="\0")).reason == "INVALID_FIELD"
        assert next(clinic.watch()).through_revision == clinic.head()


def test_calls_are_answered_while_every_watch_place_is_taken(database_url: str) -> None:
    with serving(database_url) as server, Clinic(server.address) as clinic, ExitStack() as stack:
        followers = [stack.enter_context(Follower(clinic)) for _ in range(Config.max_watches)]
        for follower in followers:
            follower.wait_for(1)
        assert refused(next, clinic.watch()).reason == "TOO_MANY_WATCHES"
        clinic.patients("p1")
        for _ in range(100):  # benchmarks/watches.py measures what they cost
            assert clinic.send("GetPatient", patient_id="p1").patient.patient_id == "p1"
        for follower in followers:
            follower.wait_through(clinic.head())


def test_a_slow_reader_is_cut_with_a_reason_and_may_resume(database_url: str) -> None:
    with serving(database_url) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=3000)
        received: list[Any] = []
        with slowly_read(server, start) as stream, pytest.raises(grpc.RpcError) as caught:
            received.extend(stream)
        found = refused(_raise, caught.value)
        assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "WATCH_TOO_SLOW")
        assert 0 < len(received) < 8
        with Follower(clinic, received[-1].through_revision) as resumed:
            resumed.wait_through(clinic.head())
            sets = [number(one.revision) for message in received for one in message.change_sets]
            assert sets + [number(one.revision) for one in resumed.sets] == list(range(1, 9))


def _raise(error: BaseException) -> None:
    raise error


def test_a_reader_that_takes_nothing_holds_up_nobody(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STUCK_READER_SECONDS", NEVER_SECONDS)
    with serving(database_url, max_watches=2) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start), Follower(clinic) as other:
            await_unread(server, 0.5)
            for n in range(20):
                clinic.patients(f"p{n}")
                other.wait_through(clinic.head())
            await_unread(server, 0.5)


def test_a_reader_that_takes_nothing_is_cut_and_leaves_its_place(database_url: str) -> None:
    with serving(database_url, max_watches=1) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start) as stream:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(limits, "STUCK_READER_SECONDS", 0.5)
                await_unread(server, 0.4)
                eventually(lambda: not server._watches._open)
            with Follower(clinic, start) as next_one:
                next_one.wait_through(clinic.head())
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert caught.value.code() == grpc.StatusCode.CANCELLED


def test_a_purge_ends_only_a_watch_that_has_yet_to_read_what_went(server: CaseloadServer, clinic: Clinic) -> None:
    start = clinic.head()
    clinic.patients("p1", "p2")
    with Follower(clinic) as up_to_date:
        up_to_date.wait_for(1)
        server.store.purge_changes(time.time_ns() // 1000 + 1)
        found = refused(next, clinic.watch(start))
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_PRUNED")
        assert found.metadata == {"oldest_revision": clinic.head()}
        clinic.patients("p3")
        up_to_date.wait_through(clinic.head())
    assert len(up_to_date.sets) == 1


def test_a_watch_never_splits_what_was_committed_together(clinic: Clinic) -> None:
    clinic.therapists("t1", "t2")
    clinic.patients(*(f"p{n}" for n in range(20)))
    with Follower(clinic) as follower:
        follower.wait_for(1)
        movers = [threading.Thread(target=_shuttle, args=(clinic, f"p{n}", 3), name=f"mover-{n}") for n in range(4)]
        for mover in movers:
            mover.start()
        join(*movers)
        clinic.transfer("t1", "t2")
        follower.wait_through(clinic.head())
    revisions = [number(one.revision) for one in follower.sets]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
    moves = [one for one in follower.sets if one.method.endswith("TransferPatients")]
    assert all(len(one.changes) % 2 == 0 for one in moves)
    assert len(moves) >= 4


def _shuttle(clinic: Clinic, patient_id: str, times: int) -> None:
    for _ in range(times):
        clinic.assign("t1", patient_id)
        clinic.transfer("t1", "t2", patient_id)
        clinic.unassign("t2", patient_id)
