"""What a stop completes, and how it ends watches."""

import socket
import struct
import threading
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from caseload.v1 import patient_service_pb2 as pb
from caseload.v1.resources_pb2 import Patient
from caseload_server.api import watches
from caseload_server.config import Config
from caseload_server.rpc.server import CaseloadServer, build_server

from tests.conftest import serving
from tests.store.store_builders import fill
from tests.support.api_driver import ApiDriver, number, refused
from tests.support.servers import NO_LOG, Client
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually, join
from tests.support.watch_reader import WatchReader, await_unread, unread

DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4


class SlowReader:
    """A raw HTTP/2 client that reads 64 KiB of a response, and the rest only after open_the_window()."""

    def __init__(self, address: str, path: bytes, message: bytes) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=HUNG_SECONDS)
        headers = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"here"}
        headers |= {b"content-type": b"application/grpc", b"te": b"trailers"}
        block = b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in headers.items())
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(SETTINGS, 0, 0, b"")
        self._send(HEADERS, END_HEADERS, 1, block)
        self._send(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._socket.sendall(
            struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
        )

    def _exactly(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            more = self._socket.recv(count - len(taken))
            assert more, "the server closed the connection"
            taken += more
        return taken

    def read(self, least: int) -> tuple[int, bool]:
        """Reads frames until this many bytes, or all; returns the byte count and whether the response is complete."""
        taken = 0
        while taken < least:
            head = self._exactly(9)
            kind, flags, payload = head[3], head[4], self._exactly(int.from_bytes(head[:3], "big"))
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._send(kind, ACK, 0, payload if kind == PING else b"")
            if kind == DATA:
                taken += len(payload)
            if kind == HEADERS and flags & END_STREAM:
                return taken, True
            assert kind != 3, "the server reset the call"
        return taken, False

    def open_the_window(self) -> None:
        for stream in (0, 1):
            self._send(WINDOW_UPDATE, 0, stream, struct.pack(">I", 2**30))

    def close(self) -> None:
        self._socket.close()


def test_a_response_still_being_read_at_a_stop_arrives_complete(database_url: str) -> None:
    server = build_server(
        Config("127.0.0.1:0", database_url, threads=4, drain_seconds=0, grace_seconds=NEVER_SECONDS, access_log=NO_LOG)
    )
    server.start()
    client = Client(server.address)
    notes = {f"{number}": "x" * 900 for number in range(10)}
    for _ in range(30):
        client.patients.CreatePatient(pb.CreatePatientRequest(patient=Patient(display_name="A", annotations=notes)))
    client.close()
    reader = SlowReader(server.address, b"/caseload.v1.PatientService/ListPatients", b"")
    first, _ = reader.read(65_535)
    stop = threading.Thread(target=server.stop)
    stop.start()
    stop.join(0.5)  # not a speed limit: the stop must not end during this time
    assert stop.is_alive()
    reader.open_the_window()
    rest, whole = reader.read(2**30)
    assert whole
    assert first + rest > 30 * 10 * 900
    join(stop)
    reader.close()


@pytest.fixture
def patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every watch unlimited time to end at a stop, even on a busy machine."""
    monkeypatch.setattr(watches, "_CLOSE_TIMEOUT_SECONDS", HUNG_SECONDS)


@pytest.mark.usefixtures("patient_close")
def test_a_stop_ends_watches_with_shutting_down_before_the_grace_period_ends(database_url: str) -> None:
    with (
        serving(database_url, grace_seconds=NEVER_SECONDS) as server,
        ApiDriver(server.address) as api,
        ExitStack() as stack,
    ):
        followers = [stack.enter_context(WatchReader(api)) for _ in range(10)]
        for follower in followers:
            follower.wait_for(1)
        stopped(server)
        for follower in followers:
            follower.join()
            assert follower.refusal
            assert (follower.refusal.code, follower.refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def stopped(server: CaseloadServer) -> None:
    """Stops the server and waits until the stop is complete."""
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    join(stopping)


@pytest.mark.slow
@pytest.mark.usefixtures("patient_close")
def test_a_stop_ends_a_lagging_watch_with_shutting_down(database_url: str) -> None:
    with serving(database_url) as server, ApiDriver(server.address) as api:
        start = api.head()
        fill(server.store, sets=8, lines=3000)
        head, received = number(api.head()), list[Any]()
        with unread(server.address, start) as stream:
            received.append(next(stream))
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            eventually(lambda: server._watches._closed)
            found = refused(lambda: received.extend(stream))
            join(stopping)
        assert found.reason == "SHUTTING_DOWN"
        assert number(received[-1].through_revision) < head  # the stop did not wait for it to catch up


@pytest.mark.slow
def test_a_stop_does_not_wait_for_a_stuck_reader(database_url: str) -> None:
    with serving(database_url, grace_seconds=NEVER_SECONDS) as server, ApiDriver(server.address) as api:
        start = api.head()
        fill(server.store, sets=8, lines=3000)
        with unread(server.address, start):
            await_unread(server, 0.5)
            stopped(server)
