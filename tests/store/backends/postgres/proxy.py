"""A proxy between the driver and PostgreSQL that can cut a connection at its COMMIT."""

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import urlsplit

Cut = Literal["before", "after"]
"""When the connection is cut: before or after PostgreSQL receives the COMMIT."""
_COMMIT: Final = b"COMMIT\0"


class Proxy:
    """Forwards bytes on loopback for the length of a with block."""

    def __init__(self, url: str) -> None:
        """Args: url, of the database behind it."""
        self._behind = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._cut: Cut | None = None
        self._refuse_after = False
        self.commits = 0
        port = self._listener.getsockname()[1]
        user = self._behind.netloc.rpartition("@")[0]
        self.url = self._behind._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()

    def cut_next_commit(self, cut: Cut, *, refuse_after: bool = False) -> None:
        """Cuts one connection at its COMMIT. Args: refuse_after, also reject new connections afterwards."""
        self._cut, self._refuse_after = cut, refuse_after

    def cut_all(self) -> None:
        """Cuts every open connection; new ones are accepted."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def refuse(self) -> None:
        """Cuts every connection and rejects new ones."""
        _close(self._listener)
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((self._behind.hostname or "", self._behind.port or 5432))
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        raise ConnectionError
                    if source is near and data.endswith(_COMMIT):
                        self._at_commit(far, data)
                    else:
                        (far if source is near else near).sendall(data)
        except (OSError, ValueError):
            _close(near, far)

    def _at_commit(self, far: socket.socket, data: bytes) -> None:
        self.commits += 1
        cut, self._cut = self._cut, None
        if cut != "before":
            far.sendall(data)
        if cut == "after":
            far.recv(65536)  # it is carried out
        if cut and self._refuse_after:
            self.refuse()
        if cut:
            raise ConnectionError


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
