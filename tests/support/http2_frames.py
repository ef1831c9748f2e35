"""A raw HTTP/2 connection: https://www.rfc-editor.org/rfc/rfc9113"""

import select
import socket

from tests.support.waiting import HUNG_SECONDS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


class Frames:
    """A raw HTTP/2 connection that sends and reads single frames."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=HUNG_SECONDS)
        self.socket.sendall(PREFACE)

    def ping(self, times: int = 1) -> None:
        self.socket.sendall((b"\0\0\x08\6\0\0\0\0\0" + b"12345678") * times)

    def read(self) -> tuple[int, bytes]:
        """Returns the type and payload of the next frame; type -1 after the server has disconnected."""
        head = self._exactly(9)
        if len(head) < 9:
            return -1, b""
        return head[3], self._exactly(int.from_bytes(head[:3], "big"))

    def ready(self, seconds: float) -> bool:
        return bool(select.select([self.socket], [], [], seconds)[0])

    def _exactly(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            try:
                more = self.socket.recv(count - len(taken))
            except ConnectionResetError:
                return b""
            if not more:
                return b""
            taken += more
        return taken

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
