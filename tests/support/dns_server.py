"""A name server on loopback that knows one name, whose addresses a test changes. RFC 1035."""

import socket
import struct
import threading
from types import TracebackType
from typing import Final, Self

NAME: Final = "caseload.test"
_A_RECORD: Final = 1
_TTL_SECONDS: Final = 0
_HEADER: Final = struct.Struct("!HHHHHH")
_RESPONSE: Final = 0x8580
"""Flags: an authoritative response, recursion desired and available, no error."""


class DnsServer:
    """Answers queries for NAME with all its addresses, within a with block."""

    def __init__(self, *addresses: str) -> None:
        """Args: addresses, IPv4."""
        self.addresses = list(addresses)
        self.queries = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def target(self, port: int) -> str:
        """Returns the gRPC target of the name at this server."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{NAME}:{port}"

    def _serve(self) -> None:
        while True:
            try:
                query, sender = self._socket.recvfrom(512)
                self._socket.sendto(self._answer(query), sender)
                self.queries += 1
            except OSError:
                return

    def _answer(self, query: bytes) -> bytes:
        """Answers a query of one question; every type but A has no record."""
        number, *_ = _HEADER.unpack_from(query)
        end = query.index(b"\0", _HEADER.size) + 5  # the name, its type and its class
        question = query[_HEADER.size : end]
        kind = int.from_bytes(question[-4:-2], "big")
        found = self.addresses if kind == _A_RECORD else []
        records = [struct.pack("!HHHIH4s", 0xC00C, 1, 1, _TTL_SECONDS, 4, socket.inet_aton(one)) for one in found]
        return _HEADER.pack(number, _RESPONSE, 1, len(records), 0, 0) + question + b"".join(records)
