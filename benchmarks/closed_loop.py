"""Callers who ask for one thing, over and over, and wait as they are told to when they are turned away.

    python -m benchmarks.closed_loop ADDRESS METHOD CALLERS SECONDS < REQUEST

h2load cannot wait, and a gRPC client in Python takes as long for a call as the server: so this speaks HTTP/2 by hand.
The server is asked not to compress headers, so that a trailer is found by its text. Prints what came of it as JSON.
"""

import heapq
import json
import re
import selectors
import socket
import statistics
import struct
import sys
import time
from collections import Counter
from typing import Final, NamedTuple

from tests.hostile import http2_frames

CONNECTIONS: Final = 16
WARM_UP_SECONDS: Final = 2.0
"""Until those who are turned away at first have come to their times."""
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 1, 3, 4, 6, 7
_END_STREAM = _ACK = 1
_NO_TABLE_BIG_WINDOW: Final = struct.pack(">HLHL", 1, 0, 4, 1 << 24)
_PUSHBACK: Final = re.compile(rb"grpc-retry-pushback-ms.(\d+)", re.DOTALL)


class Outcome(NamedTuple):
    """What came of it, from the end of the warm-up on."""

    served: float
    """Calls a second."""
    refused: float
    """Calls a second, with a time to come again."""
    by_library: float
    """Calls a second that the server's library refused by itself, without one: they come again after a second."""
    failed: int
    """Calls that ended in any other way."""
    p99_ms: float
    """Of the calls that were served, from the sending of the try that was served to the end of its answer."""


class Connection:
    """One connection, and the calls on it."""

    def __init__(self, address: str, method: str, request: bytes) -> None:
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at: dict[int, float] = {}
        self._path = http2_frames.CALL.replace(
            http2_frames.literal(b":path", http2_frames.METHOD), http2_frames.literal(b":path", method.encode())
        )
        self._request = request
        self._next, self._input = 1, b""
        window = http2_frames.frame(8, 0, 0, struct.pack(">L", 1 << 30))
        self.output = http2_frames.PREFACE + http2_frames.frame(_SETTINGS, 0, 0, _NO_TABLE_BIG_WINDOW) + window

    def ask(self) -> None:
        """Begins a call, with the next `flush`."""
        self.sent_at[self._next] = time.monotonic()
        self.output += http2_frames.headers(self._next, self._path) + http2_frames.request(self._next, self._request)
        self._next += 2

    def flush(self) -> None:
        if self.output:
            self.socket.sendall(self.output)
            self.output = b""

    def ended(self) -> list[tuple[float, bytes]]:
        """Reads what is there: of each call that has ended when it was sent, and its trailers."""
        data, at, found = self._input + self.socket.recv(1 << 18), 0, []
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
            payload = data[at + 9 : at + 9 + size]
            at += 9 + size
            if stream in self.sent_at and (kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM)):
                found.append((self.sent_at.pop(stream), payload))
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self.output += http2_frames.frame(kind, _ACK, 0, payload if kind == _PING else b"")
            elif kind == _GOAWAY:
                raise ConnectionError(payload)
        self._input = data[at:]
        return found


class Callers:
    """All of them, in one thread."""

    def __init__(self, connections: list[Connection], callers: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._again: list[tuple[float, int, Connection]] = []
        self._codes: Counter[str] = Counter()
        self._milliseconds: list[float] = []
        for one in connections:
            self._selector.register(one.socket, selectors.EVENT_READ, one)
        for number in range(callers):
            connections[number % len(connections)].ask()
        for one in connections:
            one.flush()

    def run(self, seconds: float) -> Outcome:
        self._loop(time.monotonic() + WARM_UP_SECONDS)
        self._codes.clear()
        self._milliseconds.clear()
        began = time.monotonic()
        self._loop(began + seconds)
        took = time.monotonic() - began
        p99 = statistics.quantiles(self._milliseconds, n=100)[98] if len(self._milliseconds) > 1 else 0.0
        codes = self._codes
        served, refused, by_library = (codes[what] / took for what in ("served", "refused", "by_library"))
        return Outcome(served, refused, by_library, codes["failed"], p99)

    def _loop(self, until: float) -> None:
        while (now := time.monotonic()) < until:
            while self._again and self._again[0][0] <= now:
                again = heapq.heappop(self._again)[2]
                again.ask()
                again.flush()
            for key, _ in self._selector.select(0.005):
                for sent_at, trailers in key.data.ended():
                    self._note(key.data, sent_at, trailers)
                key.data.flush()

    def _note(self, connection: Connection, sent_at: float, trailers: bytes) -> None:
        now = time.monotonic()
        if b"grpc-status\x010" in trailers:
            self._codes["served"] += 1
            self._milliseconds.append((now - sent_at) * 1000)
            connection.ask()
            return
        wait = _PUSHBACK.search(trailers)
        by_library = b"CANCELLED" in trailers or b"grpc-status\x018" in trailers
        self._codes["refused" if wait else "by_library" if by_library else "failed"] += 1
        heapq.heappush(self._again, (now + (int(wait[1]) / 1000 if wait else 1.0), id(trailers), connection))


def main() -> None:
    """Runs as told."""
    address, method, callers, seconds = sys.argv[1:]
    request = sys.stdin.buffer.read()
    connections = [Connection(address, method, request) for _ in range(CONNECTIONS)]
    print(json.dumps(Callers(connections, int(callers)).run(float(seconds))._asdict()))


if __name__ == "__main__":
    main()
