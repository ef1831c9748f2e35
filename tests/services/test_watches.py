"""WatchChanges of one server: etcd's promises within one store, places, heartbeats, slow readers."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer, build_server

from tests.clinic import PRIMARY, Clinic, number, refused
from tests.following import Follower, opened_watch, unread
from tests.services.calling import honours
from tests.store.ward import fill

OWN_PROCESS_SECONDS = 0.05
"""Promised: a watcher sees a commit of its own process within this."""
NEWS_SECONDS = 0.5
"""Promised: a store tells of another process's commit within this."""
ROOM = 10
"""Tests share the machine with others, so they allow this many times a promised time."""


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


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def test_the_first_message_comes_at_once_with_a_revision_to_resume_from(clinic: Clinic) -> None:
    clinic.therapists("t1")
    head = clinic.head()
    began = time.monotonic()
    for after in ("", head):
        with Follower(clinic, after) as follower:
            follower.wait_for(1, seconds=5)
            assert (list(follower.messages[0].change_sets), follower.through) == ([], head)
    assert time.monotonic() - began < 5  # far below a heartbeat


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
    assert limits.HEARTBEAT_SECONDS < 30 - ROOM * NEWS_SECONDS  # promised: one at least every 30 seconds
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


def test_no_heartbeat_comes_before_its_time(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 1.0)
    with Follower(clinic, actor="nobody") as follower:
        follower.wait_for(1)
        clinic.patients(*(f"p{n}" for n in range(20)))
        follower.wait_for(3)
    gaps = [after - before for before, after in zip(follower.times, follower.times[1:], strict=False)]
    assert all(0.8 < gap < 1.0 * ROOM for gap in gaps), gaps


def test_a_commit_of_the_same_process_is_seen_at_once(
    clinic: Clinic, record_property: Callable[[str, object], None]
) -> None:
    waits: list[float] = []
    with Follower(clinic) as follower:
        follower.wait_for(1)
        for n in range(30):
            revision = clinic.send("CreatePatient", patient_id=f"p{n}", patient={"display_name": "Bob Ray"}).revision
            acknowledged = time.monotonic()
            waits.append(follower.wait_through(revision) - acknowledged)
            time.sleep(n % 5 * 0.004)  # so that commits fall anywhere between two looks
    record_property("own process, median and most", (statistics.median(waits), max(waits)))
    print(f"own process: median {statistics.median(waits) * 1000:.1f} ms, most {max(waits) * 1000:.1f} ms")
    assert statistics.median(waits) < OWN_PROCESS_SECONDS * 2
    assert max(waits) < OWN_PROCESS_SECONDS * ROOM


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
            taken()
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
    places = Config.max_watches
    with serving(database_url) as server, Clinic(server.address) as clinic, ExitStack() as stack:
        clinic.therapists("t1")

        def calls(count: int) -> float:
            began = time.monotonic()
            for _ in range(count):
                clinic.send("GetTherapist", therapist_id="t1")
            return count / (time.monotonic() - began)

        calls(50)
        alone = calls(300)
        followers = [stack.enter_context(Follower(clinic)) for _ in range(places)]
        for follower in followers:
            follower.wait_for(1)
        assert refused(next, clinic.watch()).reason == "TOO_MANY_WATCHES"
        beside = max(calls(300), calls(300))
        assert beside > alone / 2, (alone, beside)  # coarse: benchmarks/watches.py measures it
        clinic.patients("p1")
        for follower in followers:
            follower.wait_through(clinic.head())


def test_a_slow_reader_is_cut_with_a_reason_and_may_resume(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLOW_READER_SECONDS", 0.3)
    with serving(database_url) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=3000)
        received: list[Any] = []
        with unread(server.address, start) as stream:
            time.sleep(1)
            with pytest.raises(grpc.RpcError) as caught:
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


def test_a_reader_that_takes_nothing_is_cut_and_leaves_its_place(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STUCK_READER_SECONDS", 0.5)
    with serving(database_url, max_watches=2) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start) as stream, Follower(clinic) as other:
            eventually(lambda: len(server._watches._open) == 2)
            slowest = 0.0
            for n in range(20):
                began = time.monotonic()
                clinic.patients(f"p{n}")
                slowest = max(slowest, other.wait_through(clinic.head()) - began)
            assert slowest < OWN_PROCESS_SECONDS * ROOM * 2
            eventually(lambda: len(server._watches._open) == 1)
            with Follower(clinic, start) as next_one:
                next_one.wait_through(clinic.head())
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert caught.value.code() == grpc.StatusCode.CANCELLED


def test_a_stop_ends_every_watch_with_shutting_down(database_url: str) -> None:
    with serving(database_url) as server, Clinic(server.address) as clinic, ExitStack() as stack:
        followers = [stack.enter_context(Follower(clinic)) for _ in range(10)]
        for follower in followers:
            follower.wait_for(1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10  # and not the whole grace
        for follower in followers:
            follower.join()
            assert follower.refusal
            assert (follower.refusal.code, follower.refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def test_a_stop_tells_a_watch_that_is_far_behind_too(database_url: str) -> None:
    with serving(database_url) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=9000)
        with unread(server.address, start) as stream:
            next(stream)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            found = refused(_read_slowly, stream)  # to catch up would take it four seconds
            stopping.join()
        assert found.reason == "SHUTTING_DOWN"


def _read_slowly(stream: Any) -> None:
    for _ in stream:
        time.sleep(0.5)


def test_a_stop_does_not_wait_for_a_reader_that_takes_nothing(database_url: str) -> None:
    with serving(database_url, grace_seconds=20) as server, Clinic(server.address) as clinic:
        start = clinic.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start):
            eventually(lambda: any(one.sending_since for one in server._watches._open))
            time.sleep(0.5)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 10


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
        for mover in movers:
            mover.join(60)
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
