"""Watches across disconnects, restarts, crashes and processes on one database; and purges of the log."""

import datetime
import itertools
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from caseload_server.clock import now_us as clock
from caseload_server.config import Config
from caseload_server.store.backends.factory import open_store

from tests.process.acknowledged_writes import FOR_A_MOMENT, reason_of
from tests.process.command_runner import caseload
from tests.store.store_builders import fill
from tests.support.api_driver import ApiDriver, number, refused
from tests.support.servers import ServerProcess
from tests.support.waiting import NEVER_SECONDS, eventually, join
from tests.support.watch_reader import WatchReader, first_answer, opened_watch, unread

SHORT_PATIENCE = (sys.executable, str(Path(__file__).with_name("short_reader_timeout_command.py")))
CUTS = 200


class Writers:
    """Four callers that write as fast as the server answers, until the with block ends."""

    def __init__(self, *addresses: str, threads: int = 4) -> None:
        """Args: addresses, of servers on one database, which the callers alternate between."""
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._write, args=(addresses[n % len(addresses)], f"w{n}-{os.urandom(4).hex()}"))
            for n in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        join(*self._threads)

    def _write(self, address: str, name: str) -> None:
        with ApiDriver(address) as api:
            for life in itertools.count():
                try:
                    self._write_on(api, f"{name}-{life}")
                except grpc.RpcError as error:
                    if reason_of(error) in FOR_A_MOMENT:
                        continue
                return  # the server has stopped, or the with block has ended

    def _write_on(self, api: ApiDriver, name: str) -> None:
        api.therapists(f"{name}-t", f"{name}-u")
        for turn in itertools.count():
            if self._stopped:
                return
            self._one_round(api, name, f"{name}-{turn}")

    @staticmethod
    def _one_round(api: ApiDriver, name: str, patient_id: str) -> None:
        api.patients(patient_id)
        api.assign(f"{name}-t", patient_id)
        api.transfer(f"{name}-t", f"{name}-u")
        api.unassign(f"{name}-u", patient_id)


def received(follower: WatchReader) -> list[int]:
    return [number(one.revision) for one in follower.sets]


def assert_whole(numbers: list[int], api: ApiDriver, start: str) -> None:
    """Asserts that the watch received every change after start once, in order, as in the log."""
    assert numbers == list(range(number(start) + 1, number(api.head()) + 1))


def test_a_watch_disconnected_at_random_has_every_change_once_in_order(database_url: str) -> None:
    chance = random.Random(20)
    with ServerProcess(database_url) as server, ApiDriver(server.address) as api:
        start = after = api.head()
        sets: list[Any] = []
        in_the_middle = 0
        with Writers(server.address):
            for cut in range(CUTS):
                with WatchReader(api, after) as follower:
                    if cut % 2:
                        eventually(lambda follower=follower: follower.sets)  # type: ignore[misc]
                    time.sleep(chance.random() * 0.03)
                    follower.cut()
                sets += follower.sets
                in_the_middle += bool(follower.sets)
                after = follower.through or after
        with WatchReader(api, after) as follower:
            follower.wait_through(api.head())
            sets += follower.sets
        assert_whole([number(one.revision) for one in sets], api, start)
        assert sets == list(api.log(start))
        assert in_the_middle >= CUTS / 2, "most cuts came before anything did: the test says little"
        assert max(len(one.changes) for one in sets) > 1


def test_a_watch_resumes_without_loss_after_restarts_and_crashes(database_url: str) -> None:
    with ServerProcess(database_url) as server, ApiDriver(server.address) as api:
        start = after = api.head()
    numbers: list[int] = []
    for crash in (False, True, False, True):
        with (
            ServerProcess(database_url) as server,
            ApiDriver(server.address) as api,
            WatchReader(api, after) as follower,
        ):
            with Writers(server.address):
                follower.wait_for(30)
                if crash:
                    server.kill()
                else:
                    code, log = server.stop()
                    assert code == 0, log
            follower.join()
        if crash:
            assert follower.refusal is None
        else:
            assert follower.refusal
            assert (follower.refusal.code, follower.refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        numbers += received(follower)
        after = follower.through
    with ServerProcess(database_url) as server, ApiDriver(server.address) as api, WatchReader(api, after) as follower:
        follower.wait_through(api.head())
        assert_whole(numbers + received(follower), api, start)


def test_no_change_seen_by_a_watch_is_lost_in_a_crash(database_url: str) -> None:
    with ServerProcess(database_url) as server, ApiDriver(server.address) as api, WatchReader(api) as follower:
        with Writers(server.address):
            follower.wait_for(40)
            server.kill()
        follower.join()
    with ServerProcess(database_url) as server, ApiDriver(server.address) as api:
        kept = {one.revision: one for one in api.log()}
        assert [one for one in follower.sets if kept.get(one.revision) != one] == []


def test_a_watch_sees_a_commit_of_another_process(
    database_url: str, record_property: Callable[[str, object], None]
) -> None:
    """By the commit, not by the heartbeat every 20 seconds: 30 of those would exceed the test's timeout."""
    with ServerProcess(database_url) as here, ServerProcess(database_url) as there:
        waits = list(latencies(here.address, there.address, 30))
        own = list(latencies(here.address, here.address, 30))
    for name, values in (("other process", waits), ("own process", own)):
        middle, most = statistics.median(values), max(values)
        record_property(name, (middle, most))
        print(f"{name}: median {middle * 1000:.1f} ms, most {most * 1000:.1f} ms")


def latencies(watched: str, written: str, count: int) -> Iterator[float]:
    """From the acknowledgement of a write at one server to its message from another, in seconds."""
    with ApiDriver(watched) as watcher, ApiDriver(written) as writer, WatchReader(watcher) as follower:
        follower.wait_for(1)
        for n in range(count):
            revision = writer.send("CreatePatient", patient={"display_name": "Bob Ray"}).revision
            acknowledged = time.monotonic()
            yield follower.wait_through(revision) - acknowledged
            time.sleep(n % 7 * 0.003)


def test_watchers_of_two_processes_on_one_file_see_the_same_log(database_url: str) -> None:
    with (
        ServerProcess(database_url) as one,
        ServerProcess(database_url) as other,
        ApiDriver(one.address) as here,
        ApiDriver(other.address) as there,
        WatchReader(here) as first,
        WatchReader(there) as second,
    ):
        first.wait_for(1)
        second.wait_for(1)
        start = here.head()
        with Writers(one.address, other.address):
            for follower in (first, second):
                eventually(lambda follower=follower: len(follower.sets) > 20)  # type: ignore[misc]
        head = here.head()
        assert there.head() == head
        assert there.send("ListChanges", after_revision=first.through).oldest_revision
        for follower in (first, second):
            follower.wait_through(head)
        assert first.sets == second.sets
        assert_whole(received(first), here, start)


def test_one_process_reads_a_write_acknowledged_by_another(database_url: str) -> None:
    with (
        ServerProcess(database_url) as one,
        ServerProcess(database_url) as other,
        ApiDriver(one.address) as here,
        ApiDriver(other.address) as there,
    ):
        here.therapists("t1")
        for n in range(50):
            writer, reader = (here, there) if n % 2 else (there, here)
            writer.patients(f"p{n}")
            period = writer.assign("t1", f"p{n}")
            assert reader.get(period.assignment_id) == period
            assert reader.checked(("t1", f"p{n}")) == [True]
            assert reader.send("GetTherapist", therapist_id="t1").therapist.active_patient_count == n + 1
            assert reader.head() == writer.head()


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


@pytest.mark.parametrize(("patience", "are_cut"), [(NEVER_SECONDS, False), (3, True)], ids=["kept", "cut"])
def test_stalled_watch_readers_use_little_memory_delay_no_call_and_are_disconnected(
    database_url: str, *, patience: float, are_cut: bool
) -> None:
    readers = 20
    arguments, environment = ("--max-watches", str(readers)), {"CASELOAD_TEST_PATIENCE": str(patience)}
    store = open_store(Config(database=database_url), clock)
    fill(store, sets=1000, lines=40)  # a hundred change sets are about 1 MiB
    start = store.keys.revision(0)
    store.close()
    with (
        ServerProcess(database_url, *arguments, command=SHORT_PATIENCE, environment=environment) as server,
        ApiDriver(server.address) as api,
        ExitStack() as stack,
    ):
        api.therapists("t1")
        with WatchReader(api, start) as follower:  # allocates the memory of one reader beforehand
            follower.wait_through(api.head())
        before = resident_kib(server.process.pid)
        streams = [stack.enter_context(unread(server.address, start)) for _ in range(readers)]
        most = 0
        for _ in range(60):
            api.send("GetTherapist", therapist_id="t1")
            most = max(most, resident_kib(server.process.pid) - before)
            time.sleep(0.05)
        print(f"grown by {most} KiB for {readers} readers")
        assert most < readers * 2500
        assert len(streams) == readers
        if are_cut:
            assert len([opened_watch(api) for _ in range(readers)]) == readers  # every watch slot is free again
        else:  # the server answered calls while all readers were connected
            assert refused(next, api.watch()).reason == "TOO_MANY_WATCHES"


# --- caseload purge


def purge(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return caseload(Path(), "purge", *arguments, CASELOAD_DATABASE=url)


@pytest.fixture
def served(database_url: str) -> Iterator[ApiDriver]:
    """A served database with a therapist and two patients in it."""
    with ServerProcess(database_url) as server, ApiDriver(server.address) as api:
        api.therapists("t1")
        api.patients("p1", "p2")
        yield api


def test_a_purge_beside_a_server_rejects_purged_revisions_and_keeps_the_rest(
    database_url: str, served: ApiDriver
) -> None:
    [first, _, last] = served.log()
    time.sleep(0.01)
    moment = datetime.datetime.now(datetime.UTC)
    served.patients("p3")
    with WatchReader(served) as follower:
        follower.wait_for(1)
        run = purge(database_url, "--changes-before", moment.isoformat())
        assert (run.returncode, run.stdout, run.stderr) == (0, "3 change sets purged\n", "")
        for rpc in ("ListChanges", "WatchChanges"):
            found = refused(first_answer, served, rpc, first.revision)
            assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_PRUNED")
            assert found.metadata == {"oldest_revision": last.revision}
        assert [number(one.revision) for one in served.log()] == [4, 5]  # and the purge
        assert [number(one.revision) for one in served.log(last.revision)] == [4, 5]
        served.patients("p4")
        follower.wait_through(served.head())
    assert served.send("GetPatient", patient_id="p1").patient.display_name == "Bob Ray"


def test_a_purge_accepts_a_time_or_an_age(database_url: str, served: ApiDriver) -> None:
    cases = {"30d": (0, 3), "2020-01-31T00:00:00Z": (0, 3), "2200-01-01T00:00:00+02:00": (3, 1)}
    for text, (gone, left) in cases.items():
        run = purge(database_url, "--changes-before", text)
        assert (run.returncode, run.stdout) == (0, f"{gone} change sets purged\n")
        assert len(list(served.log())) == left  # of which the last case's is the record of the purge
