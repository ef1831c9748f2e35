"""Callers that mean no good, each in a process of its own so that honest ones are measured apart from it.

    python -m tests.hostile.attacks NAME ADDRESS

Prints a line once the attack is in full swing, and how often it did what it does once standard input has ended and it
did so often enough to count. Bounded in time and rate: what a machine cannot carry is no question to the server.
"""

import random
import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count, cycle
from typing import Final

from tests.hostile import http2_frames
from tests.support.waiting import HUNG_SECONDS

IDLE: Final = 2000
SLOW: Final = 200
BURST: Final = 50
"""Frames in one go."""
LEAST: Final = 20
"""What is less is no attack."""
MOST_SECONDS: Final = 60
Attack = Callable[[str], Iterator[int]]
"""Attacks in steps: each says how often it did what it does; the first comes when all is in place."""


def connected(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=HUNG_SECONDS)


def _until_closed(address: str, data: bytes) -> None:
    """Sends it, and waits until the server has hung up, but not for long."""
    with connected(address) as caller, suppress(OSError):
        caller.settimeout(0.2)
        caller.sendall(data)
        while caller.recv(65536):
            pass


def garbage(address: str) -> Iterator[int]:
    """Bytes of no protocol at all, also behind a proper greeting."""
    rng = random.Random(1)
    for greeting in cycle((b"", http2_frames.PREFACE, http2_frames.GREETING)):
        _until_closed(address, greeting + rng.randbytes(4096))
        yield 1


def http1(address: str) -> Iterator[int]:
    """Requests of HTTP/1, of which some ask for an upgrade."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    for more in cycle((b"", upgrade)):
        _until_closed(address, b"POST %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (http2_frames.METHOD, more))
        yield 1


def rapid_resets(address: str) -> Iterator[int]:
    """Calls that are given up as soon as they have begun."""
    yield from _flood(
        address, lambda number: http2_frames.headers(number, http2_frames.CALL) + http2_frames.reset(number)
    )


def pings(address: str) -> Iterator[int]:
    """Pings, and nothing else."""
    yield from _flood(address, lambda _: http2_frames.PING)


def settings(address: str) -> Iterator[int]:
    """Settings, each of which wants an answer."""
    yield from _flood(address, lambda _: http2_frames.SETTINGS)


def _flood(address: str, frame: Callable[[int], bytes]) -> Iterator[int]:
    """The frame over and over, each for a new stream; on a new connection when the server hangs up."""
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
    """Connections that ask nothing; every other one says not even hello."""
    yield from _holding(address, IDLE, lambda number: http2_frames.GREETING if number % 2 else b"", lambda _: b"")


def slow_greetings(address: str) -> Iterator[int]:
    """Connections that say hello a byte at a time."""
    greeting = (http2_frames.GREETING + http2_frames.headers(1, http2_frames.CALL)) * 2
    yield from _holding(address, SLOW, lambda _: b"", lambda step: greeting[step : step + 1])


def slow_headers(address: str) -> Iterator[int]:
    """Calls whose headers come a byte at a time and never end."""
    block = http2_frames.CALL + b"\0\x7fx"  # a header whose name is said to be long
    begun = http2_frames.GREETING + http2_frames.headers(1, b"", are_all=False)
    yield from _holding(
        address, SLOW, lambda _: begun, lambda step: http2_frames.continuation(1, block[step : step + 1])
    )


def endless_headers(address: str) -> Iterator[int]:
    """Calls whose headers come as fast as they can and never end."""
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
    """Calls whose message never comes, on one connection."""
    with connected(address) as caller:
        caller.sendall(http2_frames.GREETING)
        caller.sendall(b"".join(http2_frames.headers(2 * number + 1, http2_frames.CALL) for number in range(SLOW)))
        yield SLOW
        while True:
            yield 0


def _holding(
    address: str, connections: int, first: Callable[[int], bytes], more: Callable[[int], bytes]
) -> Iterator[int]:
    """So many connections at once: what each says first, and then in each step."""
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
}
"""By name: the attack, and its steps a second."""


def main() -> None:
    """Attacks until standard input ends, but not for ever."""
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
