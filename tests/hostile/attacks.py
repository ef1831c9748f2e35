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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count, cycle, islice, repeat
from typing import Any, Final

import grpc
from caseload.v1 import assignment_service_pb2 as pb
from caseload.v1.patient_service_pb2 import CreatePatientRequest
from caseload.v1.resources_pb2 import Patient

from tests.hostile import http2_frames
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
    yield from _calling(address, cycle(requests), (("authorization", f"Bearer {os.environ[KEY_VARIABLE]}"),))


def unknown_callers(address: str) -> Iterator[int]:
    """Calls without valid credentials."""
    yield from _calling(address, repeat((CHECK, b"", grpc.Compression.NoCompression)), (("authorization", "Bearer x"),))


def health_lists(address: str) -> Iterator[int]:
    """Calls to a method that needs no credentials."""
    yield from _calling(address, repeat(("/grpc.health.v1.Health/List", b"", grpc.Compression.NoCompression)), ())


def silent_scrapes(_address: str) -> Iterator[int]:
    """Connections to the metrics page that ask for nothing."""
    yield from _holding(os.environ[METRICS_VARIABLE], SLOW, lambda _: b"", lambda _: b"")


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
