"""Limits per caller, so that one caller cannot deny the service to the others."""

import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import patient_service_pb2 as pb
from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.domain.limits import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from caseload_server.rpc.server import CaseloadServer
from caseload_server.validation.request_sizes import max_request_bytes
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from tests.api.client_calls import call
from tests.api.sample_values import METHODS, FieldRef, field_refs, full, is_map
from tests.security.server_fixture import serving
from tests.support.api_driver import ApiDriver, full_name
from tests.support.http2_frames import Frames
from tests.support.servers import Client, ServerProcess, refusal
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually

SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS = 3
ENHANCE_YOUR_CALM = 11


def code_of(answer: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        answer()
    return str(caught.value.code().name)


def test_a_message_may_have_at_most_one_mebibyte(client: Client) -> None:
    send: Any = client.channel.unary_unary("/caseload.v1.PatientService/GetPatient")

    def message(size: int) -> bytes:
        """Returns a message of this size in bytes: one field that the contract does not know."""
        return b"\x7a" + _varint(size - 4) + b"x" * (size - 4)

    assert len(message(MAX_MESSAGE_BYTES)) == MAX_MESSAGE_BYTES
    assert code_of(lambda: send(message(MAX_MESSAGE_BYTES), timeout=HUNG_SECONDS)) == "INVALID_ARGUMENT"
    assert code_of(lambda: send(message(MAX_MESSAGE_BYTES + 1), timeout=HUNG_SECONDS)) == "RESOURCE_EXHAUSTED"


def _varint(number: int) -> bytes:
    """Encodes the number as a varint of exactly three bytes."""
    return bytes([number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14])


def test_a_compressed_message_is_not_decompressed_beyond_the_limit(tmp_path: Path) -> None:
    """A hundred kilobytes would become a hundred megabytes."""
    bomb = bytes(100 << 20)
    with ServerProcess(f"sqlite:///{tmp_path}/caseload.db") as server, ApiDriver(server.address) as client:
        send: Any = client.channel.unary_unary("/caseload.v1.PatientService/GetPatient")
        before = peak_memory(server.process.pid)
        answer = code_of(lambda: send(bomb, compression=grpc.Compression.Gzip, timeout=HUNG_SECONDS))
        assert answer == "RESOURCE_EXHAUSTED"
        assert peak_memory(server.process.pid) - before < len(bomb) / 4


def peak_memory(process: int) -> int:
    """Returns the largest resident memory of a process so far, in bytes."""
    [found] = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found) * 1024


def test_metadata_may_have_at_most_16_kib(client: Client) -> None:
    def code(size: int) -> str:
        get = client.patients.GetPatient
        return code_of(
            lambda: get(pb.GetPatientRequest(patient_id="p1"), metadata=(("x", "x" * size),), timeout=HUNG_SECONDS)
        )

    assert code(MAX_METADATA_BYTES - 1000) == "NOT_FOUND"
    assert code(MAX_METADATA_BYTES + 1) == "RESOURCE_EXHAUSTED"


def test_calls_without_a_message_take_no_thread(tmp_path: Path) -> None:
    """More such calls than threads, unary and streaming, delay no other call and no watch."""
    with serving(tmp_path, threads=2, max_watches=2) as server, ApiDriver(server.address) as api:
        make: Any = api.channel.stream_unary
        enough = threading.Event()
        silent = [
            make(full_name(rpc)).future(never(enough), timeout=HUNG_SECONDS)
            for rpc in ("GetTherapist", "CreatePatient", "WatchChanges")
            for _ in range(10)
        ]
        time.sleep(0.5)
        api.therapists("t1")
        assert next(api.watch()).through_revision == api.head()
        for one in silent:
            one.cancel()
        enough.set()
        api.therapists("t2")


def never(enough: threading.Event) -> Iterator[bytes]:
    """Request messages that never arrive."""
    enough.wait(HUNG_SECONDS)
    yield from ()


def test_the_streams_of_one_connection_are_limited(server: CaseloadServer) -> None:
    with Frames(server.address) as frames:
        kind, payload = frames.read()
    assert kind == SETTINGS
    server_settings = dict(struct.iter_unpack(">HI", payload))
    assert Config.max_watches < server_settings[MAX_CONCURRENT_STREAMS] <= Config.max_watches + 1000


def test_connections_are_limited_and_a_closed_one_frees_its_slot(tmp_path: Path) -> None:
    with serving(tmp_path, max_connections=5) as server, ExitStack() as stack:
        held = [stack.enter_context(Frames(server.address)) for _ in range(5)]
        assert [frames.read()[0] for frames in held] == [SETTINGS] * 5
        with Frames(server.address) as one_more:
            assert one_more.read()[0] == -1
        held[0].socket.close()
        eventually(lambda: is_taken(server))


def is_taken(server: CaseloadServer) -> bool:
    """Whether the server accepts a new connection."""
    with Frames(server.address) as another:
        return another.read()[0] == SETTINGS


def test_connections_leave_file_descriptors_for_the_database(tmp_path: Path) -> None:
    few_files = ("bash", "-c", 'ulimit -n 600; exec "$0" "$@"', sys.executable, "-m", "caseload_server")
    with (
        ServerProcess(f"sqlite:///{tmp_path}/caseload.db", command=few_files) as server,
        ApiDriver(server.address) as api,
        ExitStack() as stack,
    ):
        api.therapists("t1")
        for _ in range(700):
            stack.enter_context(Frames(server.address))
        with ThreadPoolExecutor(Config.read_threads) as threads:  # so that no call waits for a thread and is shed
            answers = threads.map(lambda _: api.send("GetTherapist", therapist_id="t1"), range(256))
            assert len(list(answers)) == 256
        api.therapists("t2")


def test_a_silent_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.HANDSHAKE_TIMEOUT_MS <= 20_000
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_MS", 300)
    with serving(tmp_path) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=HUNG_SECONDS) as silent:
            while silent.recv(4096):
                pass


@pytest.fixture
def pinged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Frames]:
    """A connection to a server that permits one ping every 300 ms."""
    assert limits.MIN_PING_INTERVAL_MS < 10_000  # the shortest ping interval of grpc-go and grpc-java
    monkeypatch.setattr(limits, "MIN_PING_INTERVAL_MS", 300)
    with serving(tmp_path) as server, Frames(server.address) as frames:
        assert frames.read()[0] == SETTINGS
        yield frames


@pytest.mark.slow
def test_moderate_pings_are_accepted_without_a_call(pinged: Frames) -> None:
    for _ in range(10):
        pinged.ping()
        while (kind := pinged.read()[0]) != PING:
            assert kind not in (GOAWAY, -1)
        time.sleep(0.35)  # since the last ping was acknowledged
    while pinged.ready(0.2):
        assert pinged.read()[0] not in (GOAWAY, -1)


def test_a_flood_of_pings_ends_the_connection(pinged: Frames) -> None:
    pinged.ping(times=10)
    kind, payload = 0, b""
    while kind not in (GOAWAY, -1):
        kind, payload = pinged.read()
    assert kind == GOAWAY
    assert int.from_bytes(payload[4:8], "big") == ENHANCE_YOUR_CALM


# --- every text and every list has a limit ---


def is_unbounded_by_type(ref: FieldRef) -> bool:
    return ref.field.is_repeated or ref.field.type == FieldDescriptor.TYPE_STRING or "mask" in ref.field.name


def is_read(method: MethodDescriptor, ref: FieldRef) -> bool:
    """Whether the server reads the field; test_contract.py covers the others."""
    if ref.behaves(field_behavior_pb2.OUTPUT_ONLY):
        return False
    in_place_of_the_id = ref.behaves(field_behavior_pb2.IDENTIFIER) or ref.path.endswith(".etag")
    return not (method.name.startswith("Create") and in_place_of_the_id)


def overfill(ref: FieldRef) -> None:
    """Fills this one field above its limit, within the limit of the whole request."""
    field = ref.field
    if field.name == "update_mask":
        ref.owner.update_mask.paths.extend(["display_name"] * 101)
    elif is_map(field):
        getattr(ref.owner, field.name).update({f"k{number}": "x" for number in range(1001)})
    elif field.is_repeated and field.message_type:
        for _ in range(1001):
            getattr(ref.owner, field.name).add()
    elif field.is_repeated:
        value = "p1" if field.type == FieldDescriptor.TYPE_STRING else 1
        getattr(ref.owner, field.name).extend([value] * 1001)
    else:
        setattr(ref.owner, field.name, "x" * 3000)


@pytest.fixture(scope="module")
def filled_client(shared_client: Client) -> Client:
    """A client of a server with some records, for calls that are rejected."""
    with ApiDriver(shared_client.address) as api:
        api.therapists("t1", "t2")
        api.patients("p1")
    return shared_client


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_text_and_list_of_a_request_has_a_limit(filled_client: Client, method: MethodDescriptor) -> None:
    count = len([ref for ref in field_refs(full(method)) if is_unbounded_by_type(ref) and is_read(method, ref)])
    assert count
    for index in range(count):
        whole = full(method)
        ref = [one for one in field_refs(whole) if is_unbounded_by_type(one) and is_read(method, one)][index]
        overfill(ref)
        assert whole.ByteSize() <= max_request_bytes(method.input_type)
        if "allow_missing" in method.input_type.fields_by_name:
            whole.allow_missing = False
        with pytest.raises(grpc.RpcError) as caught:
            call(filled_client, method, whole)
        assert refusal(caught.value).code in {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.OUT_OF_RANGE,  # max length of a revision
            grpc.StatusCode.ABORTED,  # max length of an etag
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ALREADY_EXISTS,  # an id of maximal length
        }, ref.path


@pytest.mark.slow
def test_2000_concurrent_calls_on_one_connection_are_all_answered(tmp_path: Path) -> None:
    """A burst above the stream limit of a connection waits in the client library and is not rejected."""
    # Independent of machine speed: other tests cover the queue depth and the queue timeout.
    with (
        serving(tmp_path, queue_timeout_seconds=NEVER_SECONDS, max_queue_depth=2000) as server,
        ApiDriver(server.address) as api,
    ):
        get: Any = api.channel.unary_unary("/caseload.v1.PatientService/GetPatient")
        assert codes_at_once(get, 2000) == ["NOT_FOUND"] * 2000


def codes_at_once(get: Any, count: int) -> list[str]:
    data = pb.GetPatientRequest(patient_id="p1").SerializeToString()
    codes: list[str] = []
    lock = threading.Lock()

    def note(done: Any) -> None:
        with lock:
            codes.append(done.code().name)

    for _ in range(count):
        get.future(data, timeout=2 * HUNG_SECONDS).add_done_callback(note)
    eventually(lambda: len(codes) == count)
    return codes
