"""A caller cannot take the server from others by messages that it does not finish, or answers that it does not take."""

import math
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import grpc
import pytest
from caseload_server.domain import errors, limits
from caseload_server.rpc import admission
from caseload_server.security.principal import LOCAL
from caseload_server.store.backends.sqlite import database as sqlite
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.hostile.http2_client import Http2Client, call_headers
from tests.rpc.admission_scene import (
    DEADLINE_EXCEEDED,
    GET,
    INVALID_ARGUMENT,
    LIST,
    OK,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    Scene,
    scene_with,
    status,
)
from tests.security.server_fixture import KeysFile, await_writes, bearer, serving
from tests.support.api_driver import ApiDriver, full_name, refused, request
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually
from tests.support.write_lock import holding_the_lock, wait_for_locks

HEALTH: Final = "/grpc.health.v1.Health/Check"


def test_a_caller_without_a_key_is_refused_before_its_message_is_received(scene: Scene) -> None:
    with Http2Client(scene.address) as caller:
        assert status(caller.await_end(caller.begin(call_headers(GET)))) == UNAUTHENTICATED
    assert scene.log.lines()[-1]["reason"] == "UNAUTHENTICATED"


def test_a_message_that_is_not_whole_in_time_ends_the_call(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_TIMEOUT_SECONDS", 0.2)
    with Http2Client(scene.address) as caller:
        call = caller.begin(scene.headers(GET, "other"))
        caller.send_most([call], 1000)
        assert status(caller.await_end(call)) == DEADLINE_EXCEEDED
    assert scene.log.lines()[-1]["code"] == "DEADLINE_EXCEEDED"
    eventually(lambda: not scene.admission._open)


def test_unfinished_messages_of_one_caller_hold_no_more_than_its_share(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CALLS_RECEIVING", 8)
    monkeypatch.setattr(limits, "MESSAGE_TIMEOUT_SECONDS", NEVER_SECONDS)
    with Http2Client(scene.address) as caller:
        calls = [caller.begin(scene.headers(GET, "other")) for _ in range(20)]
        eventually(lambda: scene.open_calls("other") == len(calls))
        assert scene.receiving("other") == 4
        assert scene.get("honest") == "NOT_FOUND"


def test_a_caller_is_served_again_when_its_unfinished_messages_have_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CALLS_RECEIVING", 2)
    monkeypatch.setattr(limits, "MESSAGE_TIMEOUT_SECONDS", NEVER_SECONDS)
    with Http2Client(scene.address) as caller:
        unfinished = caller.begin(scene.headers(GET, "other"))
        eventually(lambda: scene.receiving("other") == 1)
        waiting = caller.call(scene.headers(GET, "other"), b"")
        eventually(lambda: len(scene.admission._pending) == 1)
        caller.reset(unfinished)
        assert caller.await_end(waiting)
        assert scene.get("other") == "NOT_FOUND"


def test_a_call_that_waits_for_a_slot_gets_no_more_time_for_its_message(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CALLS_RECEIVING", 2)
    with Http2Client(scene.address) as caller:
        unfinished = caller.begin(scene.headers(GET, "other"))
        eventually(lambda: scene.receiving("other") == 1)
        caller.begin(scene.headers(GET, "other"))
        [waiting] = eventually(lambda: list(scene.admission._pending))
        ends_at = waiting.stalls_at
        caller.reset(unfinished)
        eventually(lambda: not scene.admission._pending and scene.receiving("other") == 1)
        assert waiting.stalls_at == ends_at


def test_unfinished_messages_of_several_callers_do_not_keep_another_caller_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CALLS_RECEIVING", 4)
    monkeypatch.setattr(limits, "MESSAGE_TIMEOUT_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(admission, "_BURST_SECONDS", 0.0)
    with Http2Client(scene.address) as caller:
        calls = [caller.begin(scene.headers(GET, name)) for name in ("other", "other", "third", "third")]
        eventually(lambda: scene.receiving("other") == scene.receiving("third") == 2)
        assert scene.get("honest") == "NOT_FOUND"
        assert status(caller.await_end(calls[0])) == RESOURCE_EXHAUSTED


def test_a_stream_of_requests_without_a_request_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_TIMEOUT_SECONDS", 0.2)
    with Http2Client(scene.address) as caller:
        reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        assert b"CANCELLED" in caller.await_end(caller.begin(scene.headers(reflection, "other")))


def test_a_call_that_ends_without_a_message_is_rejected(scene: Scene) -> None:
    with Http2Client(scene.address) as caller:
        call = caller.begin(scene.headers(GET, "other"), ends=True)
        assert status(caller.await_end(call)) == INVALID_ARGUMENT


def test_a_probe_is_answered_while_unfinished_probes_fill_every_place(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PUBLIC_CALLS_RECEIVING", 3)
    monkeypatch.setattr(admission, "_BURST_SECONDS", 0.0)
    with Http2Client(scene.address) as caller, grpc.insecure_channel(scene.address) as channel:
        calls = [caller.begin(call_headers(HEALTH)) for _ in range(10)]
        assert [status(caller.await_end(call)) for call in calls[:7]] == [RESOURCE_EXHAUSTED] * 7
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS).status
        eventually(lambda: scene.receiving("") <= 3)


def test_a_burst_of_probes_is_answered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PUBLIC_CALLS_RECEIVING", 3)
    monkeypatch.setattr(admission, "_BURST_SECONDS", NEVER_SECONDS)
    with Http2Client(scene.address) as caller:
        calls = [caller.begin(call_headers(HEALTH)) for _ in range(10)]
        eventually(lambda: scene.receiving("") == len(calls))
        for call in calls:
            caller.finish(call, b"")
        assert [status(caller.await_end(call)) for call in calls] == [OK] * len(calls)


def test_a_probe_is_answered_while_answers_to_probes_are_not_taken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN_PUBLIC_CALLS", 5)
    with Http2Client(scene.address, window=0) as caller, grpc.insecure_channel(scene.address) as channel:
        for _ in range(20):
            caller.call(call_headers(HEALTH), b"")
        eventually(lambda: len(caller.ended) >= 15)
        eventually(lambda: all(call.stalls_at < math.inf for call in scene.admission._public.open.copy()))
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS).status


def test_a_probe_that_gave_way_is_not_answered_when_its_message_arrives_late(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN_PUBLIC_CALLS", 1)
    monkeypatch.setattr(limits, "MESSAGE_TIMEOUT_SECONDS", NEVER_SECONDS)
    released = threading.Event()
    blocker = SimpleNamespace(refuse=lambda _: released.wait(HUNG_SECONDS))
    scene.admission._rejected.put((blocker, None))  # the thread that rejects calls waits
    with Http2Client(scene.address) as caller:
        older = caller.begin(call_headers(HEALTH))
        eventually(lambda: len(scene.admission._public.open) == 1)
        newer = caller.begin(call_headers(HEALTH))
        eventually(lambda: len(scene.admission._public.open) == 2)
        for call in (older, newer):
            caller.finish(call, b"")
        eventually(lambda: scene.receiving("") == 0)
        released.set()
        assert [status(caller.await_end(call)) for call in (older, newer)] == [RESOURCE_EXHAUSTED, OK]


def test_a_call_that_times_out_while_its_message_arrives_has_a_status(scene: Scene) -> None:
    with Http2Client(scene.address) as caller:
        sent = caller.begin(scene.headers(GET, "other"))
        eventually(lambda: scene.receiving("other") == 1)
        [call] = scene.admission._open
        assert not scene.admission._end_stalled(call, errors.DeadlineExceeded(), until=call.stalls_at - 1)
        call.message = b""  # it has arrived, and admission has not seen it yet
        assert scene.admission._end_stalled(call, errors.DeadlineExceeded())
        assert status(caller.await_end(sent)) == DEADLINE_EXCEEDED


def test_a_call_whose_message_has_just_arrived_does_not_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_locks(monkeypatch)
    with serving(tmp_path) as server, ApiDriver(server.address) as api:
        create: Any = api.channel.unary_unary(full_name("CreatePatient"))
        message = request("CreatePatient", patient={"display_name": "A"}).SerializeToString()
        with holding_the_lock(f"sqlite:///{tmp_path}/caseload.db"):
            created = create.future(message, timeout=2 * HUNG_SECONDS)
            await_writes(server, 1)
            admission = server._parts.admission
            [call] = admission._open
            assert not admission._end_stalled(call, errors.DeadlineExceeded())
        assert created.result()


def test_open_calls_of_one_caller_are_limited_to_its_share(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN_CALLS", 10)
    with Http2Client(scene.address, window=0) as caller:
        calls = [caller.call(scene.headers(LIST, "other"), b"") for _ in range(5)]
        eventually(lambda: scene.open_calls("other") == 5)
        refusal = caller.await_end(caller.call(scene.headers(LIST, "other"), b""))
        assert status(refusal) == RESOURCE_EXHAUSTED
        assert not set(calls) & caller.ended.keys()
        assert scene.get("honest") == "NOT_FOUND"


def test_one_caller_cannot_open_every_watch(tmp_path: Path) -> None:
    with scene_with(tmp_path, max_watches=4) as scene, ApiDriver(scene.address) as api:
        watch: Any = api.channel.unary_stream(full_name("WatchChanges"))
        others = [watch(b"", metadata=bearer(scene.tokens["other"])) for _ in range(2)]
        assert all(next(one) for one in others)
        refusal = refused(next, watch(b"", metadata=bearer(scene.tokens["other"])))
        assert (refusal.reason, refusal.metadata) == ("TOO_MANY_WATCHES", {"limit": "2"})
        assert next(watch(b"", metadata=bearer(scene.tokens["honest"]), timeout=HUNG_SECONDS))
        for one in others:
            one.cancel()


def test_the_only_caller_of_a_server_without_keys_has_no_share(tmp_path: Path) -> None:
    with serving(tmp_path, max_watches=2) as server, ApiDriver(server.address) as api:
        watch: Any = api.channel.unary_stream(full_name("WatchChanges"))
        watches = [watch(b"") for _ in range(2)]
        assert all(next(one) for one in watches)
        assert {one.principal for one in server._watches._open} == {LOCAL.name}
        for one in watches:
            one.cancel()


def test_a_request_that_is_too_large_is_not_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)
    database = f"sqlite:///{tmp_path}/caseload.db"
    with serving(tmp_path, threads=1) as server, ApiDriver(server.address) as api:
        create: Any = api.channel.unary_unary(full_name("CreatePatient"))
        with holding_the_lock(database):
            message = request("CreatePatient", patient={"display_name": "A"}).SerializeToString()
            first = create.future(message, timeout=2 * HUNG_SECONDS)
            await_writes(server, 1)
            with pytest.raises(grpc.RpcError) as caught:
                create(bytes(limits.MAX_RECORD_BYTES * 4), timeout=HUNG_SECONDS)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert first.result()


def test_a_log_that_hangs_does_not_stop_the_thread_that_receives_calls(tmp_path: Path) -> None:
    pipe = tmp_path / "access.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    keys = KeysFile(tmp_path / "keys")
    metadata = bearer(keys.add("honest"))
    with serving(tmp_path, keys_file=keys.path, access_log=pipe) as server, ApiDriver(server.address) as api:
        writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        get: Any = api.channel.unary_unary(GET)
        anonymous = [get.future(b"") for _ in range(20)]
        valid = get.future(b"", metadata=metadata)
        eventually(lambda: server._parts.executors.reads.in_flight() == 1)
        assert not valid.done()

        def all_done_after_a_read() -> bool:
            with suppress(BlockingIOError):
                os.read(reader, 65536)
            return all(call.done() for call in (valid, *anonymous))

        eventually(all_done_after_a_read)
        os.close(writer)
    os.close(reader)


def test_a_watch_outlives_the_limit_of_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_STEPS_PER_DEADLINE_CHECK", 1)
    with serving(tmp_path) as server, ApiDriver(server.address) as api:
        start = api.head()
        api.patients("p1", "p2")
        monkeypatch.setattr(limits, "MAX_READ_SECONDS", 0.0)
        assert refused(api.send, "ListPatients").reason == "STORE_BUSY"
        watch = api.watch(start)
        seen: list[str] = []
        while len(seen) < 2:
            seen += [one.revision for one in next(watch).change_sets]
        watch.cancel()
