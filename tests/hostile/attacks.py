"""Hostile callers, each in its own process, so that honest callers are measured separately.

    python -m tests.hostile.attacks NAME ADDRESS

Prints a line when the attack is running. At the end of standard input it prints the number of
attack steps, once there are enough of them. Time and rate are limited, so the machine itself is not overloaded.
"""

import os
import random
import resource
import select
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count, cycle, islice, repeat
from typing import Any, Final

import grpc
from caseload.v1 import assignment_service_pb2 as pb
from caseload.v1.patient_service_pb2 import CreatePatientRequest, ListPatientsRequest, PatientFilter
from caseload.v1.resources_pb2 import Patient, Therapist
from caseload.v1.therapist_service_pb2 import AssignPatientRequest, CreateTherapistRequest

from tests.hostile import http2_frames
from tests.hostile.http2_client import Http2Client, call_headers
from tests.support.waiting import HUNG_SECONDS

IDLE: Final = 2000
SLOW: Final = 200
BURST: Final = 50
"""Frames per write."""
AT_ONCE: Final = 16
"""Calls in flight."""
KEY_VARIABLE: Final = "ATTACKER_KEY"
"""The environment variable with the attacker's API key."""
METRICS_VARIABLE: Final = "METRICS_ADDRESS"
"""The environment variable with the address of the metrics page."""
CHECK: Final = "/caseload.v1.AssignmentService/CheckAssignments"
CREATE: Final = "/caseload.v1.PatientService/CreatePatient"
GET: Final = "/caseload.v1.TherapistService/GetTherapist"
LIST_PATIENTS: Final = "/caseload.v1.PatientService/ListPatients"
THERAPISTS: Final = "/caseload.v1.TherapistService"
TRANSFER: Final = "/caseload.v1.AssignmentService/TransferPatients"
WATCH: Final = "/caseload.v1.ChangeService/WatchChanges"
CASELOAD: Final = 250
"""Patients of one therapist: a page of them has the largest size."""
MESSAGE_BYTES: Final = 1024 * 1024
LEAST: Final = 20
"""The minimum number of attack steps."""
MOST_SECONDS: Final = 60
Attack = Callable[[str], Iterator[int]]
"""Yields the number of attack actions after each step; the first step follows the setup."""


def authenticated_call() -> bytes:
    """The header block of a call with the attacker's key."""
    return http2_frames.CALL + http2_frames.literal(b"authorization", f"Bearer {os.environ[KEY_VARIABLE]}".encode())


def connected(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=HUNG_SECONDS)


def _until_closed(address: str, data: bytes) -> None:
    """Sends the data and waits a short time for the server to disconnect."""
    with connected(address) as caller, suppress(OSError):
        caller.settimeout(0.2)
        caller.sendall(data)
        while caller.recv(65536):
            pass


def garbage(address: str) -> Iterator[int]:
    """Random bytes, also after a valid connection preface."""
    rng = random.Random(1)
    for greeting in cycle((b"", http2_frames.PREFACE, http2_frames.GREETING)):
        _until_closed(address, greeting + rng.randbytes(4096))
        yield 1


def http1(address: str) -> Iterator[int]:
    """HTTP/1 requests, some with an upgrade."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    for more in cycle((b"", upgrade)):
        _until_closed(address, b"POST %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (http2_frames.METHOD, more))
        yield 1


def rapid_resets(address: str) -> Iterator[int]:
    """Calls that are reset immediately after they start."""
    call = authenticated_call()
    yield from _flood(address, lambda number: http2_frames.headers(number, call) + http2_frames.reset(number))


def pings(address: str) -> Iterator[int]:
    """Pings, and nothing else."""
    yield from _flood(address, lambda _: http2_frames.PING)


def settings(address: str) -> Iterator[int]:
    """SETTINGS frames, each of which needs an acknowledgement."""
    yield from _flood(address, lambda _: http2_frames.SETTINGS)


def _flood(address: str, frame: Callable[[int], bytes]) -> Iterator[int]:
    """Repeats the frame, each time for a new stream; reconnects when the server disconnects."""
    while True:
        with connected(address) as caller, suppress(OSError):
            caller.sendall(http2_frames.GREETING)
            caller.setblocking(False)
            for first in count(1, 2 * BURST):
                caller.sendall(b"".join(map(frame, range(first, first + 2 * BURST, 2))))
                yield BURST
                with suppress(BlockingIOError):
                    if not caller.recv(1 << 20):
                        break
        yield 0


def idle(address: str) -> Iterator[int]:
    """Idle connections; every other one does not even send the connection preface."""
    yield from _holding(address, IDLE, lambda number: http2_frames.GREETING if number % 2 else b"", lambda _: b"")


def slow_greetings(address: str) -> Iterator[int]:
    """Connections that send the connection preface one byte at a time."""
    greeting = (http2_frames.GREETING + http2_frames.headers(1, http2_frames.CALL)) * 2
    yield from _holding(address, SLOW, lambda _: b"", lambda step: greeting[step : step + 1])


def slow_headers(address: str) -> Iterator[int]:
    """Calls that send endless headers one byte at a time."""
    block = http2_frames.CALL + b"\0\x7fx"  # a header that announces a long name
    begun = http2_frames.GREETING + http2_frames.headers(1, b"", are_all=False)
    yield from _holding(
        address, SLOW, lambda _: begun, lambda step: http2_frames.continuation(1, block[step : step + 1])
    )


def endless_headers(address: str) -> Iterator[int]:
    """Calls that send endless headers as fast as possible."""
    filler = http2_frames.continuation(1, http2_frames.CALL * 20)
    begun = http2_frames.GREETING + http2_frames.headers(1, http2_frames.CALL, are_all=False)
    while True:
        with connected(address) as caller, suppress(OSError):
            caller.sendall(begun)
            for _ in range(BURST):
                caller.sendall(filler)
                yield 1
        yield 0


def silent_calls(address: str) -> Iterator[int]:
    """Calls that never send their message, on one connection."""
    with connected(address) as caller:
        caller.sendall(http2_frames.GREETING)
        call = authenticated_call()
        caller.sendall(b"".join(http2_frames.headers(2 * number + 1, call) for number in range(SLOW)))
        yield SLOW
        while True:
            yield 0


def refused_requests(address: str) -> Iterator[int]:
    """Requests that cost a server the most before it rejects them."""
    pair = pb.CheckAssignmentsRequest(pairs=[pb.CheckAssignmentsRequest.Pair()]).SerializeToString()
    marks = Patient(display_name="a" + "\u0301\u0316" * 20_000)
    requests = [
        (CHECK, pair * 523_000, grpc.Compression.Gzip),  # about a kilobyte on the wire
        (CHECK, pair * 8000, grpc.Compression.NoCompression),
        (CREATE, CreatePatientRequest(patient=marks).SerializeToString(), grpc.Compression.NoCompression),
    ]
    yield from _calling(address, cycle(requests), _credentials())


def unknown_callers(address: str) -> Iterator[int]:
    """Calls without valid credentials."""
    yield from _calling(address, repeat((CHECK, b"", grpc.Compression.NoCompression)), (("authorization", "Bearer x"),))


def health_lists(address: str) -> Iterator[int]:
    """Calls to a method that needs no credentials."""
    yield from _calling(address, repeat(("/grpc.health.v1.Health/List", b"", grpc.Compression.NoCompression)), ())


def silent_scrapes(_address: str) -> Iterator[int]:
    """Connections to the metrics page that ask for nothing."""
    yield from _holding(os.environ[METRICS_VARIABLE], SLOW, lambda _: b"", lambda _: b"")


def unfinished_messages(address: str) -> Iterator[int]:
    """Calls that send all but the end of the largest message."""
    headers = call_headers(GET, os.environ[KEY_VARIABLE])
    while True:
        with Http2Client(address) as caller:
            streams = [caller.begin(headers) for _ in range(SLOW)]
            caller.send_most(streams, MESSAGE_BYTES, wait_seconds=0.05)
            yield SLOW


def untaken_answers(address: str) -> Iterator[int]:
    """Calls whose large answers are not taken."""
    _store_caseload(address)
    headers = call_headers(LIST_PATIENTS, os.environ[KEY_VARIABLE])
    page = ListPatientsRequest(page_size=1000).SerializeToString()
    with ExitStack() as stack:
        callers = [stack.enter_context(Http2Client(address, window=0)) for _ in range(4)]
        for caller in cycle(callers):
            caller.call(headers, page)
            yield 1


def name_searches(address: str) -> Iterator[int]:
    """Searches that match every patient."""
    _store_caseload(address)
    search = ListPatientsRequest(filter=PatientFilter(name_prefix="bob ray"), page_size=1000)
    request = (LIST_PATIENTS, search.SerializeToString(), grpc.Compression.NoCompression)
    yield from _calling(address, repeat(request), _credentials())


def trial_transfers(address: str) -> Iterator[int]:
    """Transfers of a whole caseload that only validate."""
    _store_caseload(address)
    while True:
        ids: dict[str, Any] = {"source_therapist_id": "greedy1", "target_therapist_id": "greedy2"}
        requests = (
            pb.TransferPatientsRequest(**ids, request_id=str(uuid.uuid4()), validate_only=True) for _ in count()
        )
        data = ((TRANSFER, one.SerializeToString(), grpc.Compression.NoCompression) for one in requests)
        yield from _calling(address, data, _credentials())


def open_watches(address: str) -> Iterator[int]:
    """More watches than one caller may have."""
    headers = call_headers(WATCH, os.environ[KEY_VARIABLE])
    with Http2Client(address) as caller:
        while True:
            caller.call(headers, b"")
            yield 1


def _credentials() -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {os.environ[KEY_VARIABLE]}"),)


def _store_caseload(address: str) -> None:
    """Stores a therapist with many patients, if another attack has not."""
    notes = {f"k{number}": "v" * 900 for number in range(10)}
    with grpc.insecure_channel(address) as channel:

        def call(method: str, request: Any) -> None:
            send: Any = channel.unary_unary(method)
            send.future(request.SerializeToString(), metadata=_credentials(), timeout=HUNG_SECONDS).exception()

        for name in ("greedy1", "greedy2"):
            therapist = Therapist(display_name="Ann Lee")
            call(f"{THERAPISTS}/CreateTherapist", CreateTherapistRequest(therapist_id=name, therapist=therapist))
        for number in range(CASELOAD):
            patient = Patient(display_name=f"Bob Ray {number}", annotations=notes)
            call(CREATE, CreatePatientRequest(patient_id=f"greedy{number}", patient=patient))
            pair = AssignPatientRequest(therapist_id="greedy1", patient_id=f"greedy{number}")
            call(f"{THERAPISTS}/AssignPatient", pair)


def _calling(
    address: str, requests: Iterator[tuple[str, bytes, grpc.Compression]], metadata: tuple[tuple[str, str], ...]
) -> Iterator[int]:
    """Makes AT_ONCE calls in each step. Args: requests, a method, a message and its compression for each."""
    with grpc.insecure_channel(address) as channel:
        while True:
            calls = []
            for method, data, compression in islice(requests, AT_ONCE):
                send: Any = channel.unary_unary(method)
                calls.append(send.future(data, metadata=metadata, compression=compression, timeout=HUNG_SECONDS))
            for call in calls:
                call.exception()  # waits until it has ended
            yield AT_ONCE


def _holding(
    address: str, connections: int, first: Callable[[int], bytes], more: Callable[[int], bytes]
) -> Iterator[int]:
    """Holds this many connections. Args: first, sent at once; more, sent in each step."""
    with ExitStack() as stack:
        held = []
        for number in range(connections):
            held.append(stack.enter_context(connected(address)))
            held[-1].sendall(first(number))
        yield connections
        for step in count():
            for caller in held:
                with suppress(OSError):
                    caller.sendall(more(step))
            yield 0


ATTACKS: Final[dict[str, tuple[Attack, float]]] = {
    "garbage": (garbage, 100),
    "HTTP/1": (http1, 100),
    "rapid resets": (rapid_resets, 40),
    "pings": (pings, 40),
    "settings": (settings, 40),
    "idle connections": (idle, 10),
    "slow greetings": (slow_greetings, 10),
    "slow headers": (slow_headers, 10),
    "endless headers": (endless_headers, 100),
    "silent calls": (silent_calls, 10),
    "refused requests": (refused_requests, 20),
    "unknown callers": (unknown_callers, 40),
    "health lists": (health_lists, 40),
    "silent scrapes": (silent_scrapes, 10),
    "unfinished messages": (unfinished_messages, 10),
    "untaken answers": (untaken_answers, 40),
    "name searches": (name_searches, 20),
    "trial transfers": (trial_transfers, 20),
    "open watches": (open_watches, 40),
}
"""By name: the attack, and its steps per second."""


def main() -> None:
    """Attacks until standard input ends, for a limited time."""
    name, address = sys.argv[1:]
    attack, rate = ATTACKS[name]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    steps = attack(address)
    done = next(steps)
    print("attacking", flush=True)
    began = time.monotonic()
    for number in range(1, int(rate * MOST_SECONDS)):
        done += next(steps)
        ended, _, _ = select.select([sys.stdin], [], [], max(0, began + number / rate - time.monotonic()))
        if ended and done > LEAST:
            break
    print(done, flush=True)


if __name__ == "__main__":
    main()
