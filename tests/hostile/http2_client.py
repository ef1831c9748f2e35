"""A caller that speaks HTTP/2 frame by frame. It keeps to flow control, and can leave messages unfinished."""

import socket
import struct
import threading
from collections import defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from tests.hostile import http2_frames
from tests.support.waiting import HUNG_SECONDS

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_HEADER_TABLE_SIZE, _INITIAL_WINDOW = 1, 4
_END_STREAM, _ACK = 1, 1
LARGE_WINDOW: Final = 2**31 - 1


def call_headers(method: str, token: str = "") -> bytes:
    """The header block of a call. Args: method, such as /caseload.v1.TherapistService/GetTherapist; token, a key."""
    path = http2_frames.literal(b":path", http2_frames.METHOD)
    block = http2_frames.CALL.replace(path, http2_frames.literal(b":path", method.encode()))
    return block + http2_frames.literal(b"authorization", b"Bearer " + token.encode()) if token else block


class Http2Client:
    """One connection. Its calls are numbered by their stream ids: 1, 3, 5, ..."""

    def __init__(self, address: str, window: int = LARGE_WINDOW) -> None:
        """Connects. Args: window, the bytes of an answer that the server may send before the caller has taken them."""
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=HUNG_SECONDS)
        settings = struct.pack(">HLHL", _INITIAL_WINDOW, window, _HEADER_TABLE_SIZE, 0)  # without a table to read
        self._socket.sendall(http2_frames.PREFACE + http2_frames.frame(_SETTINGS, 0, 0, settings))
        self._changed = threading.Condition()
        self._windows: defaultdict[int, int] = defaultdict(lambda: 0)
        self._initial_window = self._connection_window = 65535
        self._next_stream = 1
        self.ended: dict[int, bytes] = {}
        """The last header block of each call that the server ended, or b"reset"."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(HUNG_SECONDS)
        self._socket.close()

    def begin(self, headers: bytes, *, ends: bool = False) -> int:
        """Starts a call without its message. Returns its stream id. Args: ends, no message follows."""
        with self._changed:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._socket.sendall(http2_frames.headers(stream, headers, ends=ends))
        return stream

    def call(self, headers: bytes, message: bytes) -> int:
        """Starts a call with its message, which must fit the initial window. Returns its stream id."""
        stream = self.begin(headers)
        self.finish(stream, message)
        return stream

    def finish(self, stream: int, message: bytes) -> None:
        """Sends the message of a call that has begun."""
        self._send(http2_frames.request(stream, message))

    def reset(self, stream: int) -> None:
        """Cancels a call."""
        self._send(http2_frames.reset(stream))

    def send_most(self, streams: list[int], size: int, wait_seconds: float = 1.0) -> None:
        """Sends a message of each call but for its last byte, as far as the server's windows allow; all at once.

        Args: size, of a message, in bytes. Returns when all is sent, or no window grows for wait_seconds.
        """
        self._send_each(streams, struct.pack(">BL", 0, size) + bytes(size - 1), wait_seconds)

    def send_all(self, streams: list[int], message: bytes, wait_seconds: float = 1.0) -> None:
        """Sends the message of each call, all at once. Returns as `send_most`."""
        self._send_each(streams, struct.pack(">BL", 0, len(message)) + message, wait_seconds)

    def _send_each(self, streams: list[int], framed: bytes, wait_seconds: float) -> None:
        rest = dict.fromkeys(streams, framed)
        while rest := {stream: data for stream, data in rest.items() if data and stream not in self.ended}:
            sent = {stream: self._send_part(stream, data) for stream, data in rest.items()}
            rest = {stream: data[sent[stream] :] for stream, data in rest.items()}
            with self._changed:
                if not any(sent.values()) and not self._changed.wait(wait_seconds):
                    return

    def await_end(self, stream: int) -> bytes:
        """Waits until the server has ended the call. Returns its trailers, or b"reset"."""
        with self._changed:
            assert self._changed.wait_for(lambda: stream in self.ended, HUNG_SECONDS), stream
            return self.ended[stream]

    def _send_part(self, stream: int, data: bytes) -> int:
        with self._changed:
            window = self._initial_window + self._windows[stream]
            size = max(0, min(16_000, window, self._connection_window, len(data)))
            self._windows[stream] -= size
            self._connection_window -= size
        if size:
            self._send(http2_frames.frame(_DATA, 0, stream, data[:size]))
        return size

    def _send(self, data: bytes) -> None:
        with self._changed, suppress(OSError):
            self._socket.sendall(data)

    def _read(self) -> None:
        received = bytearray()
        with suppress(OSError):
            while more := self._socket.recv(65536):
                received += more
                while len(received) >= 9 and len(received) >= 9 + (size := int.from_bytes(received[:3], "big")):
                    kind, flags, stream = received[3], received[4], int.from_bytes(received[5:9], "big")
                    with self._changed:
                        self._take(kind, flags, stream, bytes(received[9 : 9 + size]))
                        self._changed.notify_all()
                    del received[: 9 + size]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE and stream:
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == _WINDOW_UPDATE:
            self._connection_window += int.from_bytes(payload, "big")
        elif kind == _RST_STREAM:
            self.ended.setdefault(stream, b"reset")
        elif kind == _HEADERS and flags & _END_STREAM:
            self.ended[stream] = payload
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            if kind == _SETTINGS:
                self._take_settings(payload)
            self._socket.sendall(http2_frames.frame(kind, _ACK, 0, b"" if kind == _SETTINGS else payload))

    def _take_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack(">HL", payload[at : at + 6])
            if name == _INITIAL_WINDOW:
                self._initial_window = value
