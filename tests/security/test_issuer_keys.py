"""The keys of an identity provider: rotation, unusable keys, invented keys and outages."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from caseload.v1 import change_service_pb2
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.domain import limits
from caseload_server.security import issuer_keys
from caseload_server.security.issuer_keys import IssuerKeys
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from tests.security.server_fixture import KeysFile, bearer, serving
from tests.security.token_calls import ADMITTED, GET, last_cause, reason, settings
from tests.support.issuer import Issuer, SigningKey
from tests.support.servers import refusal
from tests.support.waiting import NEVER_SECONDS, FakeClock, eventually, join

QUIET_SECONDS: Final = 0.1
"""After this time without an unknown key, the server neither asks the issuer nor rests because it has just done so."""


def test_a_new_key_of_the_issuer_is_found_by_the_first_token_that_names_it(
    caller: grpc.Channel, issuer: Issuer
) -> None:
    def is_first_admitted() -> bool:
        time.sleep(QUIET_SECONDS)
        new = SigningKey("ES256")
        issuer.keys = [*issuer.keys, new]
        return reason(caller, issuer.token(new)) == ADMITTED

    eventually(is_first_admitted)


def test_a_withdrawn_key_verifies_no_more_tokens(caller: grpc.Channel, issuer: Issuer) -> None:
    """Not even those that it has verified before."""
    token = issuer.token()
    eventually(lambda: reason(caller, token) == ADMITTED)
    issuer.keys = issuer.keys[:1]
    assert reason(caller, issuer.token(SigningKey("ES256"))) == "UNAUTHENTICATED"
    eventually(lambda: reason(caller, token) == "UNAUTHENTICATED")


def test_a_quiet_watch_ends_when_the_issuer_withdraws_the_key_of_its_token(
    caller: grpc.Channel, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", NEVER_SECONDS)
    token = bearer(issuer.token(permissions=["audit"]))
    eventually(lambda: reason(caller, issuer.token()) == ADMITTED)
    watch = ChangeServiceStub(caller).WatchChanges(change_service_pb2.WatchChangesRequest(), metadata=token)
    next(watch)
    issuer.keys = issuer.keys[:1]
    assert reason(caller, issuer.token(SigningKey("ES256"))) == "UNAUTHENTICATED"
    with pytest.raises(grpc.RpcError) as caught:
        next(watch)
    assert refusal(caught.value).reason == "UNAUTHENTICATED"


def test_a_token_without_the_id_of_a_key_needs_a_single_key(caller: grpc.Channel, issuer: Issuer) -> None:
    token = issuer.token(headers={"kid": None})
    assert reason(caller, token) == "UNAUTHENTICATED"
    issuer.keys = issuer.keys[1:2]
    eventually(lambda: reason(caller, token) == ADMITTED)


UNUSABLE: dict[str, dict[str, Any]] = {
    "for encryption": {"use": "enc"},
    "to sign only": {"key_ops": ["sign"]},
    "for another algorithm": {"alg": "ES384"},
    "of another curve": {"crv": "P-384"},
    "symmetric": {"kty": "oct", "k": "AAAA"},
    "with its private part": {"d": "AAAA"},
    "broken": {"x": "AAAA"},
}


@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_key_of_the_issuer_keeps_no_other_from_use(
    caller: grpc.Channel, issuer: Issuer, change: dict[str, Any]
) -> None:
    bad, good = SigningKey("ES256"), SigningKey("ES256")
    bad.jwk |= change
    issuer.keys = [bad, good]
    eventually(lambda: reason(caller, issuer.token(good)) == ADMITTED)
    assert reason(caller, issuer.token(bad)) == "UNAUTHENTICATED"


@pytest.mark.filterwarnings("ignore")  # PyJWT warns of the short key
def test_two_keys_of_one_id_and_short_keys_are_not_used(caller: grpc.Channel, issuer: Issuer) -> None:
    short = SigningKey("RS256", "short", rsa.generate_private_key(65537, 1024))
    good, *same = SigningKey("ES256"), SigningKey("ES256", "same"), SigningKey("ES256", "same")
    issuer.keys = [short, *same, good]
    eventually(lambda: reason(caller, issuer.token(good)) == ADMITTED)
    for key in (short, *same):
        assert reason(caller, issuer.token(key)) == "UNAUTHENTICATED"


def test_made_up_keys_do_not_become_requests_to_the_issuer_and_delay_no_call(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ISSUER_RETRY_SECONDS", NEVER_SECONDS)
    with serving(tmp_path, **settings(issuer)) as server, grpc.insecure_channel(server.address) as channel:
        asked = len(issuer.requests)
        for number in range(200):
            token = issuer.token(headers={"kid": f"made-up-{number}"})
            assert reason(channel, token) == "UNAUTHENTICATED"
        assert reason(channel, issuer.token()) == ADMITTED
        assert len(issuer.requests) < asked + 20  # the server of the other tests may have asked meanwhile


def test_no_call_waits_for_an_issuer_that_does_not_answer_except_those_with_unknown_keys(
    caller: grpc.Channel, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING_FOR_ISSUER", 3)
    token = issuer.token()
    eventually(lambda: reason(caller, token) == ADMITTED)
    try:
        get, unknown = TherapistServiceStub(caller).GetTherapist, bearer(issuer.token(headers={"kid": "unknown"}))
        waiting: list[Any] = []

        def are_all_waiting() -> bool:
            issuer.responds.set()
            time.sleep(QUIET_SECONDS)
            issuer.responds.clear()
            waiting[:] = [get.future(GET, metadata=unknown) for _ in range(3)]
            assert reason(caller, issuer.token(headers={"kid": "unknown"})) == "UNAUTHENTICATED"
            time.sleep(QUIET_SECONDS)
            return not any(call.done() for call in waiting)

        eventually(are_all_waiting)
        assert reason(caller, token) == ADMITTED
        assert reason(caller, issuer.token()) == ADMITTED
        waiting[0].cancel()
    finally:
        issuer.responds.set()
    assert {call.code() for call in waiting[1:]} == {grpc.StatusCode.UNAUTHENTICATED}
    assert reason(caller, token) == ADMITTED


@pytest.fixture
def fetching(issuer: Issuer) -> Iterator[IssuerKeys]:
    """Keys whose first fetch runs until the issuer responds."""
    keys = IssuerKeys(issuer.url)
    assert keys.when_refreshed(lambda: None)
    issuer.responds.clear()
    starting = threading.Thread(target=keys.start, name="start")
    starting.start()
    eventually(lambda: not keys._waiting)
    yield keys
    issuer.responds.set()
    keys.close()
    join(starting)


def test_a_call_that_comes_during_a_fetch_waits_for_the_next_one(fetching: IssuerKeys, issuer: Issuer) -> None:
    """The answer to the first one may lack the key of its token."""
    before, seen = len(issuer.requests), list[int]()
    assert fetching.when_refreshed(lambda: seen.append(len(issuer.requests)))
    issuer.responds.set()
    eventually(lambda: seen)
    assert seen[0] >= before + 3  # the rest of the first fetch, and the two of the next one


def test_no_call_waits_for_another_fetch_once_one_has_failed(fetching: IssuerKeys, issuer: Issuer) -> None:
    issuer.status = 503
    fetching._retry_seconds = NEVER_SECONDS
    called = threading.Event()
    assert fetching.when_refreshed(called.set)
    issuer.responds.set()
    eventually(called.is_set)
    assert not fetching.when_refreshed(called.set)


def test_the_keys_outlast_an_outage_of_the_issuer_for_a_limited_time(issuer: Issuer) -> None:
    clock = FakeClock()
    keys = IssuerKeys(issuer.url, clock)
    keys.start()
    try:
        assert keys.current()
        issuer.status = 503
        asked = len(issuer.requests)
        clock.advance(limits.ISSUER_OUTAGE_SECONDS - 1)
        eventually(lambda: keys.when_refreshed(lambda: None) or len(issuer.requests) > asked)
        eventually(lambda: len(issuer.requests) > asked)
        assert keys.current()
        clock.advance(1)
        assert keys.current() is None
        issuer.status = 200
        eventually(keys.current)
    finally:
        keys.close()


def test_an_issuer_that_answers_byte_by_byte_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with unknown keys wait as long as the answer takes, and no keys can be fetched meanwhile."""
    monkeypatch.setattr(issuer_keys, "_TIMEOUT_SECONDS", 0.3)
    issuer.drips = True
    keys = IssuerKeys(issuer.url)
    keys.start()
    try:
        eventually(issuer.was_given_up.is_set)
        issuer.drips = False
        monkeypatch.undo()
        eventually(keys.current)
    finally:
        issuer.drips = False
        keys.close()


DEFECTS: dict[str, dict[str, Any]] = {
    "the document of another issuer": {"issuer": "https://evil.test"},
    "an address without encryption": {"jwks_uri": "http://localhost/keys"},
    "an address of a file": {"jwks_uri": "file:///etc/hostname"},
    "no address": {"jwks_uri": None},
}


@pytest.mark.parametrize("defect", [*DEFECTS, "a redirect", "an untrusted certificate"])
def test_a_server_starts_without_the_keys_of_a_wrong_issuer_and_logs_why(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    monkeypatch.setattr(limits, "ISSUER_RETRY_SECONDS", NEVER_SECONDS)
    issuer.discovery = issuer.discovery | DEFECTS.get(defect, {})
    issuer.is_moved = defect == "a redirect"
    if defect == "an untrusted certificate":
        monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("billing")
    with (
        capture_logs() as logs,
        serving(tmp_path, **settings(issuer), keys_file=keys.path, access_log=tmp_path / "access.log") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert reason(channel, issuer.token()) == "UNAUTHENTICATED"
        assert last_cause(tmp_path) == "issuer_unavailable"
        assert reason(channel, key) == ADMITTED
    lines = [one for one in logs if one["event"] == "issuer keys unavailable"]
    assert lines  # two if the server of the other tests asks this issuer meanwhile
    assert all(line["log_level"] == "error" and line["reason"] for line in lines)
