"""A server that two callers have keys for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caseload_server.rpc.server import CaseloadServer

from tests.conftest import serving
from tests.security.server_fixture import KeysFile, bearer
from tests.support.api_driver import ApiDriver, full_name, new_request_id, request
from tests.support.waiting import HUNG_SECONDS


class Caller:
    """A caller with a key of its own."""

    def __init__(self, api: ApiDriver, token: str) -> None:
        self._channel = api.channel
        self._metadata = bearer(token)

    def begin(self, rpc: str, timeout: float = 2 * HUNG_SECONDS, **fields: Any) -> Any:
        """Starts a call and returns its future."""
        call: Any = self._channel.unary_unary(full_name(rpc))
        message = request(rpc, **fields).SerializeToString()
        return call.future(message, timeout=timeout, metadata=self._metadata)

    def create(self, timeout: float = 2 * HUNG_SECONDS) -> Any:
        return self.begin("CreatePatient", timeout, patient={"display_name": "A"})

    def transfer(self, **fields: Any) -> Any:
        """Moves all patients of t1 to t2."""
        ends: dict[str, Any] = {"source_therapist_id": "t1", "target_therapist_id": "t2", **fields}
        return self.begin("TransferPatients", **ends, request_id=new_request_id())

    def send(self, rpc: str, **fields: Any) -> None:
        """Makes a call that must succeed."""
        self.begin(rpc, **fields).result()


@contextmanager
def two_callers(database_url: str, folder: Path, **settings: Any) -> Iterator[tuple[CaseloadServer, Caller, Caller]]:
    keys = KeysFile(folder / "keys")
    tokens = [keys.add(name) for name in ("other", "honest")]
    with serving(database_url, keys_file=keys.path, **settings) as server, ApiDriver(server.address) as api:
        other, honest = (Caller(api, token) for token in tokens)
        yield server, other, honest
