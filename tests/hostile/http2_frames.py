"""Builds raw HTTP/2 frames (RFC 9113 section 4, RFC 7541 for the header block), as needed for attacks."""

import re
import socket
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _CONTINUATION = 0, 1, 3, 4, 6, 9
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_CANCEL: Final = 8
METHOD: Final = b"/caseload.v1.TherapistService/GetTherapist"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A literal header field, never indexed; name and value have less than 127 bytes each."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


CALL: Final = b"\x83\x86" + b"".join(  # POST and http, by their index in the static table
    literal(name, value)
    for name, value in (
        (b":path", METHOD),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
"""The header block of a call."""
SETTINGS: Final = frame(_SETTINGS, 0, 0, b"")
PING: Final = frame(_PING, 0, 0, bytes(8))
GREETING: Final = PREFACE + SETTINGS


def headers(stream: int, block: bytes, *, are_all: bool = True, ends: bool = False) -> bytes:
    """Starts a call. Args: are_all, no CONTINUATION frames follow; ends, no message follows."""
    return frame(_HEADERS, (_END_HEADERS if are_all else 0) | (_END_STREAM if ends else 0), stream, block)


def continuation(stream: int, block: bytes, *, is_last: bool = False) -> bytes:
    """Continues the headers of a call."""
    return frame(_CONTINUATION, _END_HEADERS if is_last else 0, stream, block)


def request(stream: int, message: bytes) -> bytes:
    """The only message of a call, with its gRPC prefix."""
    return frame(_DATA, _END_STREAM, stream, struct.pack(">BL", 0, len(message)) + message)


def reset(stream: int) -> bytes:
    """Cancels a call."""
    return frame(_RST_STREAM, 0, stream, struct.pack(">L", _CANCEL))


def read_until(caller: socket.socket, pattern: bytes) -> re.Match[bytes]:
    """Reads until the server has sent the pattern. Raises TimeoutError after the socket's timeout."""
    answer = b""
    while not (found := re.search(pattern, answer)):
        more = caller.recv(65536)
        assert more, f"the server hung up after {answer!r}"
        answer += more
    return found
