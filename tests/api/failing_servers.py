"""Errors of a server that is overloaded, stopping, too slow, without its log, or broken: a call that gets each."""

from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from tests.api.client_calls import full_error_text
from tests.api.fault_injection import CANARY, FaultyServer
from tests.security.server_fixture import KeysFile, bearer, serving
from tests.store.store_builders import fill
from tests.support.api_driver import ApiDriver, full_name, request
from tests.support.waiting import HUNG_SECONDS
from tests.support.watch_reader import slowly_read
from tests.support.write_lock import holding_the_lock, wait_for_locks


def too_many_watches(faulty: FaultyServer) -> object:
    open_watch = faulty.api.watch()
    next(open_watch)
    try:
        return next(faulty.api.watch())
    finally:
        open_watch.cancel()


def watch_too_slow(faulty: FaultyServer) -> object:
    start = faulty.api.head()
    fill(faulty.server.store, sets=8, lines=3000)
    with slowly_read(faulty.server, start) as stream:
        return list(stream)


def shutting_down_in_watch(faulty: FaultyServer) -> object:
    watch = faulty.api.watch()
    next(watch)
    faulty.server._watches.close()
    return next(watch)


def shutting_down(faulty: FaultyServer) -> object:
    """A call that outlives the grace period of a stop meets a closed store."""
    faulty.server.store.close()
    return faulty.patients.create("p2", display_name=CANARY)


def deadline_exceeded(faulty: FaultyServer) -> object:
    """Sends the timeout as a header, because a client that knows its deadline does not wait for the answer.

    A call may finish in time, be shed, or be ended by the gRPC library. So it is repeated until our own error arrives.
    """
    body = {"display_name": CANARY}
    request = faulty.patients.pb.CreatePatientRequest(patient=body, validate_only=True)
    for _ in range(500):
        try:
            faulty.side.client.patients.CreatePatient(request, metadata=(("grpc-timeout", "1n"),))
        except grpc.RpcError as error:
            is_ours = "grpc-status-details-bin" in full_error_text(error)
            if is_ours and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
    raise AssertionError("no call reached the server after its deadline")


def overloaded(_faulty: FaultyServer) -> object:
    """Uses another server: its one thread waits for a lock, and its queue depth is 1."""
    with (
        pytest.MonkeyPatch.context() as patched,
        TemporaryDirectory() as folder,
        serving(Path(folder), threads=1, max_queue_depth=1) as server,
        ApiDriver(server.address) as api,
        holding_the_lock(f"sqlite:///{folder}/caseload.db"),
    ):
        wait_for_locks(patched)
        create: Any = api.channel.unary_unary(full_name("CreatePatient"))
        body = request("CreatePatient", patient={"display_name": CANARY}).SerializeToString()
        ended: SimpleQueue[Any] = SimpleQueue()
        calls = [create.future(body, timeout=HUNG_SECONDS) for _ in range(9)]  # they arrive in any order
        for call in calls:
            call.add_done_callback(ended.put)
        return ended.get(timeout=HUNG_SECONDS).result()


def unlogged(_faulty: FaultyServer) -> object:
    """Reads from another server, which must log every call and whose log has no room."""
    log = Path("/dev/full")
    with (
        TemporaryDirectory() as folder,
        serving(Path(folder), access_log=log, access_log_required=True) as server,
        ApiDriver(server.address) as api,
    ):
        return api.send("ListPatients", filter={"name_prefix": CANARY})


def authenticated_read(_faulty: FaultyServer, permission: str, token: str = "") -> object:
    """Reads from another server with one caller and this permission; sends the caller's key unless token is set."""
    with TemporaryDirectory() as folder:
        keys_file = KeysFile(Path(folder) / "keys")
        key = keys_file.add(CANARY, permission)
        with serving(Path(folder), keys_file=keys_file.path, threads=2) as server, ApiDriver(server.address) as api:
            get: Any = api.channel.unary_unary("/caseload.v1.PatientService/GetPatient", None, None)
            return get(CANARY.encode(), metadata=bearer(token or key), timeout=HUNG_SECONDS)


def internal(faulty: FaultyServer) -> object:
    return faulty.therapists.get("broken")


def internal_in_watch(faulty: FaultyServer) -> object:
    return list(faulty.api.watch(actor=CANARY))
