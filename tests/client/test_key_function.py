"""connect(key=function): tokens that expire, for both clients."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from caseload.client import aio, connect, error_info
from caseload.v1 import change_service_pb2, therapist_service_pb2
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import file_reload

from tests.client.aio.run import in_time, run
from tests.client.fake_server import FakeServer
from tests.security.server_fixture import KeysFile, serving

GET = therapist_service_pb2.GetTherapistRequest(therapist_id="t1")
WATCH = change_service_pb2.WatchChangesRequest()


def numbered() -> Callable[[], str]:
    """A function that returns another token each time."""
    tokens = iter(("a1", "b2", "c3", "d4"))
    return lambda: next(tokens)


def tokens(peer: FakeServer) -> list[str]:
    return [attempt.metadata["authorization"] for attempt in peer.attempts]


def test_each_call_sends_the_token_of_that_moment(peer: FakeServer) -> None:
    with connect(peer.address, key=numbered(), on_behalf_of="jdoe") as caseload:
        caseload.therapists.GetTherapist(GET)
        caseload.therapists.GetTherapist(GET, metadata=(("authorization", "Bearer own"),))
        caseload.therapists.GetTherapist.future(GET).result()
        list(caseload.changes.WatchChanges(WATCH))
    assert tokens(peer) == ["Bearer a1", "Bearer own", "Bearer b2", "Bearer c3"]
    assert {attempt.metadata["caseload-on-behalf-of"] for attempt in peer.attempts} == {"jdoe"}


def test_each_asyncio_call_sends_the_token_of_that_moment(peer: FakeServer) -> None:
    async def calls() -> None:
        async with aio.connect(peer.address, key=numbered()) as caseload:
            await caseload.therapists.GetTherapist(GET)
            await caseload.therapists.GetTherapist(GET)

    run(calls())
    assert tokens(peer) == ["Bearer a1", "Bearer b2"]


def test_an_invalid_token_is_an_error_of_the_call_and_is_not_repeated(peer: FakeServer) -> None:
    with (
        connect(peer.address, key=lambda: "Canary-Zq9\n") as caseload,
        pytest.raises(ValueError, match=r"^key: must be visible ASCII characters$"),
    ):
        caseload.therapists.GetTherapist(GET)
    assert peer.attempts == []


def test_no_token_is_sent_in_plain_text_beyond_loopback() -> None:
    with pytest.raises(ValueError, match="needs TLS"):
        connect("192.0.2.1:1", key=numbered(), allow_insecure=True)


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


class Expiring:
    """A key that can stop being valid, and be replaced."""

    def __init__(self, keys: KeysFile) -> None:
        self._keys = keys
        self._current = keys.add("billing")
        self.used: set[str] = set()

    def __call__(self) -> str:
        self.used.add(self._current)
        return self._current

    def expire(self) -> None:
        self._keys.replace("")

    def renew(self) -> None:
        self.expire()
        self._current = self._keys.add("billing")


@pytest.fixture
def key(keys: KeysFile) -> Expiring:
    return Expiring(keys)


@pytest.fixture
def secure(
    tmp_path: Path,
    keys: KeysFile,
    key: Expiring,  # noqa: ARG001 - read at the start
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CaseloadServer]:
    """A server that sees at once that a key has expired."""
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    with serving(tmp_path, keys_file=keys.path) as server:
        yield server


def test_a_watch_continues_with_the_new_token_and_ends_without_one(secure: CaseloadServer, key: Expiring) -> None:
    with connect(secure.address, key=key) as caseload:
        watch = caseload.watch()
        next(watch)
        key.renew()
        while len(key.used) == 1:
            next(watch)
        key.expire()
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
    assert error_info(caught.value).reason == "UNAUTHENTICATED"


def test_an_asyncio_watch_continues_with_the_new_token(secure: CaseloadServer, key: Expiring) -> None:
    async def watch() -> None:
        async with aio.connect(secure.address, key=key) as caseload:
            responses = caseload.watch()
            await in_time(anext(responses))
            key.renew()
            while len(key.used) == 1:
                await in_time(anext(responses))

    run(watch())
