"""A proxy that adds a round trip's time, as a network between two machines does.

python benchmarks/slow_network.py HOST:PORT MILLISECONDS
"""

import heapq
import itertools
import select
import socket
import sys
import time

_CHUNK_BYTES = 65536


class SlowNetwork:
    """Forwards every connection in one thread. Bytes leave half of the round trip after they arrived."""

    def __init__(self, behind: tuple[str, int], round_trip_seconds: float) -> None:
        """Args: behind, host and port of the server."""
        self._behind = behind
        self._delay_seconds = round_trip_seconds / 2
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._other: dict[socket.socket, socket.socket] = {}
        self._on_the_way: list[tuple[float, int, socket.socket, bytes]] = []
        self._number = itertools.count()
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Forwards until the process ends."""
        while True:
            wait = max(0.0, self._on_the_way[0][0] - time.monotonic()) if self._on_the_way else None
            readable, _, _ = select.select([self._listener, *self._other], [], [], wait)
            for source in readable:
                if source is self._listener:
                    self._connect()
                elif source in self._other:
                    self._take(source)
            while self._on_the_way and self._on_the_way[0][0] <= time.monotonic():
                self._deliver(*heapq.heappop(self._on_the_way)[2:])

    def _connect(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._behind)
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._other |= {near: far, far: near}

    def _take(self, source: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            self._close(source)
            return
        entry = (time.monotonic() + self._delay_seconds, next(self._number), self._other[source], data)
        heapq.heappush(self._on_the_way, entry)

    def _deliver(self, target: socket.socket, data: bytes) -> None:
        if target in self._other:
            try:
                target.sendall(data)
            except OSError:
                self._close(target)

    def _close(self, one: socket.socket) -> None:
        for end in (one, self._other.pop(one)):
            self._other.pop(end, None)
            end.close()


def main() -> None:
    """Prints the address, and forwards until it is killed."""
    host, _, port = sys.argv[1].rpartition(":")
    network = SlowNetwork((host, int(port)), float(sys.argv[2]) / 1000)
    print(f"127.0.0.1:{network.port}", flush=True)
    network.run()


if __name__ == "__main__":
    main()
