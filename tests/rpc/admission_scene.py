"""A server with keys, and what its admission of calls counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload_server.rpc.server import CaseloadServer

from tests.hostile.http2_client import call_headers
from tests.security.server_fixture import KeysFile, LogReader, bearer, serving
from tests.support.api_driver import ApiDriver, full_name
from tests.support.waiting import HUNG_SECONDS

GET: Final = full_name("GetTherapist")
LIST: Final = full_name("ListTherapists")
UNAUTHENTICATED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, OK = b"16", b"3", b"4", b"8", b"0"


class Scene:
    """A server that three callers have keys for."""

    def __init__(self, server: CaseloadServer, folder: Path, tokens: dict[str, str]) -> None:
        self.server = server
        self.address = server.address
        self.tokens = tokens
        self.log = LogReader(folder / "access.log")
        self.admission: Any = server._parts.admission

    def get(self, name: str) -> str:
        """Gets a therapist that does not exist. Returns the code of the answer."""
        with ApiDriver(self.address, alone=True) as api:
            call: Any = api.channel.unary_unary(GET)
            message = pb.GetTherapistRequest(therapist_id="t1").SerializeToString()
            code: grpc.StatusCode = call.future(
                message, timeout=HUNG_SECONDS, metadata=bearer(self.tokens[name])
            ).code()
            return code.name

    def headers(self, method: str, name: str) -> bytes:
        return call_headers(method, self.tokens[name])

    def receiving(self, name: str) -> int:
        """The number of a caller's calls whose message is being received."""
        return len(self.admission._callers[name].receiving) if name in self.admission._callers else 0

    def open_calls(self, name: str) -> int:
        return len(self.admission._callers[name].open) if name in self.admission._callers else 0


@contextmanager
def scene_with(folder: Path, **settings: Any) -> Iterator[Scene]:
    keys = KeysFile(folder / "keys")
    tokens = {name: keys.add(name) for name in ("honest", "other", "third")}
    log = folder / "access.log"
    with serving(folder, keys_file=keys.path, access_log=log, **settings) as server:
        yield Scene(server, folder, tokens)


def status(trailers: bytes) -> bytes:
    """The grpc-status of a header block without Huffman coding."""
    _, _, rest = trailers.partition(b"grpc-status")
    return rest[1 : 1 + rest[0]]
