"""A closed-loop load generator: callers repeat one call and obey the server's retry pushback.

    python -m benchmarks.closed_loop ADDRESS METHOD CALLERS SECONDS [DEADLINE_SECONDS] < REQUEST

h2load cannot wait, and a Python gRPC client uses as much CPU as the server. So this module writes HTTP/2 frames itself.
It disables header compression, so that it finds trailers by their text. Prints the outcome as JSON.
"""

import heapq
import json
import math
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
"""Seconds until the callers rejected at the start have spread out."""
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 1, 3, 4, 6, 7
_END_STREAM = _ACK = 1
_NO_TABLE_BIG_WINDOW: Final = struct.pack(">HLHL", 1, 0, 4, 1 << 24)
_PUSHBACK: Final = re.compile(rb"grpc-retry-pushback-ms.(\d+)", re.DOTALL)


class Outcome(NamedTuple):
    """The result, measured after the warm-up."""

    served: float
    """OK responses per second."""
    rejected: float
    """Rejections per second with a retry pushback."""
    by_library: float
    """Rejections per second by grpcio itself, without pushback: callers retry after a second."""
    late: float
    """Calls per second that were not answered before their deadline."""
    failed: int
    """Calls that ended in another way."""
    p99_ms: float
    """99th percentile of the latency of OK responses, from sending the successful attempt to its end."""


class Connection:
    """One HTTP/2 connection and its calls."""

    def __init__(self, address: str, method: str, request: bytes, deadline_seconds: float = math.inf) -> None:
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at: dict[int, float] = {}
        self._path = http2_frames.CALL.replace(
            http2_frames.literal(b":path", http2_frames.METHOD), http2_frames.literal(b":path", method.encode())
        )
        self._deadline_seconds = deadline_seconds
        if deadline_seconds < math.inf:
            self._path += http2_frames.literal(b"grpc-timeout", b"%dm" % (deadline_seconds * 1000))
        self._request = request
        self._next, self._input = 1, b""
        window = http2_frames.frame(8, 0, 0, struct.pack(">L", 1 << 30))
        self.output = http2_frames.PREFACE + http2_frames.frame(_SETTINGS, 0, 0, _NO_TABLE_BIG_WINDOW) + window

    def start_call(self) -> None:
        """Queues a call, which the next `flush` sends."""
        self.sent_at[self._next] = time.monotonic()
        self.output += http2_frames.headers(self._next, self._path) + http2_frames.request(self._next, self._request)
        self._next += 2

    def cancel_late(self) -> int:
        """Queues the cancellation of calls whose deadline has passed. Returns their number."""
        before = time.monotonic() - self._deadline_seconds
        late = [stream for stream, sent_at in self.sent_at.items() if sent_at < before]
        for stream in late:
            del self.sent_at[stream]
            self.output += http2_frames.reset(stream)
        return len(late)

    def flush(self) -> None:
        if self.output:
            self.socket.sendall(self.output)
            self.output = b""

    def read_ended(self) -> list[tuple[float, bytes]]:
        """Reads available data. Returns the send time and the trailers of each call that ended."""
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
    """All callers, in one thread."""

    def __init__(self, connections: list[Connection], callers: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._retries: list[tuple[float, int, Connection]] = []
        self._codes: Counter[str] = Counter()
        self._milliseconds: list[float] = []
        self._connections = connections
        for one in connections:
            self._selector.register(one.socket, selectors.EVENT_READ, one)
        for number in range(callers):
            connections[number % len(connections)].start_call()
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
        served, rejected, by_library, late = (
            codes[what] / took for what in ("served", "rejected", "by_library", "late")
        )
        return Outcome(served, rejected, by_library, late, codes["failed"], p99)

    def _loop(self, until: float) -> None:
        while (now := time.monotonic()) < until:
            while self._retries and self._retries[0][0] <= now:
                connection = heapq.heappop(self._retries)[2]
                connection.start_call()
                connection.flush()
            for one in self._connections:
                for _ in range(one.cancel_late()):
                    self._codes["late"] += 1
                    one.start_call()
                one.flush()
            for key, _ in self._selector.select(0.005):
                for sent_at, trailers in key.data.read_ended():
                    self._record(key.data, sent_at, trailers)
                key.data.flush()

    def _record(self, connection: Connection, sent_at: float, trailers: bytes) -> None:
        now = time.monotonic()
        if b"grpc-status\x010" in trailers:
            self._codes["served"] += 1
            self._milliseconds.append((now - sent_at) * 1000)
            connection.start_call()
            return
        wait = _PUSHBACK.search(trailers)
        by_library = b"CANCELLED" in trailers or b"grpc-status\x018" in trailers
        late = b"grpc-status\x014" in trailers
        self._codes["rejected" if wait else "by_library" if by_library else "late" if late else "failed"] += 1
        heapq.heappush(self._retries, (now + (int(wait[1]) / 1000 if wait else 1.0), id(trailers), connection))


def main() -> None:
    """Runs the load and prints the outcome."""
    address, method, callers, seconds, *deadline = sys.argv[1:]
    request = sys.stdin.buffer.read()
    deadline_seconds = float(deadline[0]) if deadline else math.inf
    connections = [Connection(address, method, request, deadline_seconds) for _ in range(CONNECTIONS)]
    print(json.dumps(Callers(connections, int(callers)).run(float(seconds))._asdict()))


if __name__ == "__main__":
    main()
