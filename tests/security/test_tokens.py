"""Tokens of an identity provider: a real issuer over TLS, real calls, and every way to forge a token that we know."""

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import jwt
import pytest
from caseload.v1 import change_service_pb2, therapist_service_pb2
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.resources_pb2 import Therapist
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server import config
from caseload_server.config import SettingError
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import issuer_keys, principal
from caseload_server.security.issuer_keys import IssuerKeys
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from tests.process.command_runner import refusal as start_refused
from tests.security.server_fixture import KeysFile, LogReader, bearer, serving
from tests.support.issuer import AUDIENCE, Issuer, SigningKey, issuing
from tests.support.servers import refusal
from tests.support.waiting import NEVER_SECONDS, FakeClock, eventually

GET = therapist_service_pb2.GetTherapistRequest(therapist_id="t1")
REQUEST_ID = "0190a3c4-0000-7000-8000-000000000001"
ADMITTED = "THERAPIST_NOT_FOUND"
QUIET_SECONDS = 0.1
"""After this time without an unknown key, the server neither asks the issuer nor rests because it has just done so."""


@pytest.fixture(scope="module", autouse=True)
def fast_refresh() -> Iterator[None]:
    """The server asks the issuer for its keys as often as it may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "ISSUER_RETRY_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with issuing(tmp_path_factory.mktemp("issuer")) as (found, authority), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority))
        yield found


@pytest.fixture(autouse=True)
def restored(issuer: Issuer) -> Iterator[None]:
    """Each test leaves the issuer as it was."""
    keys, discovery = issuer.keys, issuer.discovery
    yield
    issuer.keys, issuer.discovery, issuer.status, issuer.is_moved = keys, discovery, 200, False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def server(folder: Path, issuer: Issuer) -> Iterator[CaseloadServer]:
    with serving(folder, **settings(issuer), access_log=folder / "access.log") as started:
        yield started


@pytest.fixture
def caller(server: CaseloadServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def settings(issuer: Issuer) -> dict[str, Any]:
    return {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE}


def reason(channel: grpc.Channel, token: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        TherapistServiceStub(channel).GetTherapist(GET, metadata=bearer(token))
    found = refusal(caught.value)
    if found.reason == "UNAUTHENTICATED":
        assert (found.code, found.metadata) == (grpc.StatusCode.UNAUTHENTICATED, {})
    return found.reason


def last_cause(folder: Path) -> str:
    """The cause in the last line of the access log."""
    return str(LogReader(folder / "access.log").lines()[-1].get("cause"))


def signed(header: dict[str, Any], claims: dict[str, Any], sign: Any) -> str:
    """A token with any header, signed in any way."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    content = b".".join(parts)
    return (content + b"." + base64.urlsafe_b64encode(sign(content)).rstrip(b"=")).decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_is_accepted_with_each_algorithm(caller: grpc.Channel, issuer: Issuer, algorithm: str) -> None:
    [key] = [key for key in issuer.keys if key.algorithm == algorithm]
    assert reason(caller, issuer.token(key)) == ADMITTED


ACCEPTED: dict[str, dict[str, Any]] = {
    "one of several audiences": {"aud": ["other", AUDIENCE]},
    "words in the claim": {"permissions": "openid read offline_access"},
    "unknown permissions": {"permissions": ["admin", "read", 1, None]},
    "the type of an access token": {"headers": {"typ": "at+JWT"}},
    "no type": {"headers": {"typ": None}},
    "headers that are not used": {"headers": {"jku": "https://evil.test/keys", "x5u": "https://evil.test"}},
    "times within the leeway": {"exp": -limits.TOKEN_LEEWAY_SECONDS + 30, "nbf": 30, "iat": 30},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_a_token_is_accepted_with(caller: grpc.Channel, issuer: Issuer, changes: dict[str, Any]) -> None:
    assert reason(caller, issuer.token(**absolute(changes))) == ADMITTED


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "no expiry": ({"exp": None}, "malformed_token"),
    "an expiry that is text": ({"exp": str(2**40)}, "malformed_token"),
    "an expiry that never comes": ({"exp": float("inf")}, "malformed_token"),
    "an expiry in the past": ({"exp": -limits.TOKEN_LEEWAY_SECONDS - 30}, "expired_token"),
    "a begin in the future": ({"nbf": limits.TOKEN_LEEWAY_SECONDS + 3000}, "premature_token"),
    "a time of issue in the future": ({"iat": limits.TOKEN_LEEWAY_SECONDS + 3000}, "premature_token"),
    "no issuer": ({"iss": None}, "malformed_token"),
    "another issuer": ({"iss": "https://evil.test"}, "wrong_issuer"),
    "no audience": ({"aud": None}, "malformed_token"),
    "another audience": ({"aud": "caseload2"}, "wrong_audience"),
    "a part of the audience": ({"aud": "case"}, "wrong_audience"),
    "other audiences": ({"aud": ["other", ""]}, "wrong_audience"),
    "no name": ({"sub": None}, "invalid_token_name"),
    "an empty name": ({"sub": ""}, "invalid_token_name"),
    "a name with a quote": ({"sub": 'a"'}, "invalid_token_name"),
    "a name with a line break": ({"sub": "a\n"}, "invalid_token_name"),
    "a long name": ({"sub": "a" * 200}, "invalid_token_name"),
    "a token for a logout": ({"headers": {"typ": "logout+jwt"}}, "malformed_token"),
    "a header that must be understood": ({"headers": {"crit": ["exp"]}}, "malformed_token"),
    "an unknown key": ({"headers": {"kid": "unknown"}}, "unknown_token_key"),
    "no key, of several": ({"headers": {"kid": None}}, "unknown_token_key"),
    "the key of another algorithm": ({"headers": {"kid": "rs256"}}, "unknown_token_key"),
}


@pytest.mark.parametrize(("changes", "cause"), REJECTED.values(), ids=REJECTED)
def test_a_token_is_rejected_with(
    caller: grpc.Channel, issuer: Issuer, folder: Path, changes: dict[str, Any], cause: str
) -> None:
    assert reason(caller, issuer.token(**absolute(changes))) == "UNAUTHENTICATED"
    assert last_cause(folder) == cause


def absolute(changes: dict[str, Any]) -> dict[str, Any]:
    """Times are given from now on."""
    now = int(time.time())
    return {
        name: now + value if name in {"exp", "nbf", "iat"} and type(value) is int else value
        for name, value in changes.items()
    }


def forgeries(issuer: Issuer) -> dict[str, str]:
    """Tokens that the issuer did not sign, or not in this way."""
    rs256, es256, _ = issuer.keys
    header, _, signature = issuer.token(rs256).split(".")
    public = rs256.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    theirs = SigningKey("ES256", "es256")
    p384 = ec.generate_private_key(ec.SECP384R1())
    changed = signed({}, claims | {"sub": "admin"}, lambda _: b"").split(".")[1]
    return {
        "no algorithm": signed({"alg": "none", "kid": "es256"}, claims, lambda _: b""),
        "no algorithm, in capitals": signed({"alg": "NONE", "kid": "es256"}, claims, lambda _: b""),
        "a header without an algorithm": signed({"kid": "es256"}, claims, lambda _: b""),
        "HS256 with the public key": signed({"alg": "HS256", "kid": "rs256"}, claims, hmac_with(public)),
        "HS256 named RS256": signed({"alg": "RS256", "kid": "rs256"}, claims, hmac_with(public)),
        "RS512": jwt.encode(claims, rs256.private, "RS512", {"kid": "rs256"}),
        "PS256": jwt.encode(claims, rs256.private, "PS256", {"kid": "rs256"}),
        "ES384": jwt.encode(claims, p384, "ES384", {"kid": "es256"}),
        "another key of the same id": issuer.token(theirs),
        "its own key in the header": issuer.token(theirs, headers={"jwk": theirs.jwk}),
        "an address of keys in the header": issuer.token(theirs, headers={"jku": f"{issuer.url}/theirs"}),
        "no signature": f"{header}.{changed}.",
        "a changed claim": f"{header}.{changed}.{signature}",
        "zeros as signature": signed({"alg": "ES256", "kid": "es256"}, claims, lambda _: bytes(64)),
        "claims that are no object": jws(es256, []),
        "an issuer in a list": jws(es256, claims | {"iss": [issuer.url]}),
        "a name in a list": jws(es256, claims | {"sub": ["admin"]}),
        "no times": jws(es256, claims | {"exp": {}, "iat": []}),
        "a deep header": base64.b64encode(b"[" * 4000).decode() + "..",
        "a key id that is no text": signed({"alg": "ES256", "kid": {}}, claims, lambda _: b""),
        "dots": "..",
    }


def jws(key: SigningKey, content: object) -> str:
    """A token with any content, signed by the issuer."""
    return jwt.api_jws.encode(json.dumps(content).encode(), key.private, key.algorithm, {"kid": key.id})


def hmac_with(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda content: hmac.digest(secret, content, hashlib.sha256)


def test_a_forged_token_is_rejected(caller: grpc.Channel, issuer: Issuer, folder: Path) -> None:
    causes = {}
    for name, token in forgeries(issuer).items():
        assert reason(caller, token) == "UNAUTHENTICATED", name
        causes[name] = last_cause(folder)
    of_algorithms = {name for name, cause in causes.items() if cause == "wrong_algorithm"}
    assert of_algorithms == {
        name for name in causes if name.startswith(("no algorithm", "HS256 with", "ES384", "RS512", "PS256"))
    }
    assert "/theirs" not in issuer.requests
    log = (folder / "access.log").read_text()
    assert all(token[:40] not in log for token in forgeries(issuer).values() if len(token) > 2)


def test_permissions_come_from_the_claim_only(caller: grpc.Channel, issuer: Issuer) -> None:
    for permissions in (["write"], [], None, "reading", {"read": True}, 1, [["read"]]):
        assert reason(caller, issuer.token(permissions=permissions)) == "PERMISSION_DENIED"


def test_claims_of_other_names_can_hold_the_permissions_and_the_name(tmp_path: Path, issuer: Issuer) -> None:
    names: dict[str, Any] = {"oidc_permissions_claim": "https://example.org/roles", "oidc_name_claim": "client_id"}
    claims: dict[str, Any] = {"https://example.org/roles": ["write", "audit"], "client_id": "reports"}
    token = issuer.token(**claims)
    with serving(tmp_path, **settings(issuer), **names) as server, grpc.insecure_channel(server.address) as channel:
        assert actors(channel, token) == ["oidc:reports"]
        assert reason(channel, issuer.token(client_id="reports")) == "PERMISSION_DENIED"


def actors(channel: grpc.Channel, token: str) -> list[str]:
    """The actors of all changes, after one of the caller's own."""
    request = therapist_service_pb2.CreateTherapistRequest(therapist=Therapist(display_name="A"), request_id=REQUEST_ID)
    TherapistServiceStub(channel).CreateTherapist(request, metadata=bearer(token))
    log = ChangeServiceStub(channel).ListChanges(change_service_pb2.ListChangesRequest(), metadata=bearer(token))
    return [one.actor for one in log.change_sets]


def test_callers_with_a_key_and_with_a_token_are_never_the_same(tmp_path: Path, issuer: Issuer) -> None:
    """Their change sets and their request ids stay apart, whatever the token's name is."""
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("billing", "write", "audit")
    with (
        serving(tmp_path, **settings(issuer), keys_file=keys.path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert actors(channel, key) == ["billing"]
        expected = ["billing"]
        for name in ("billing", "local", "cli:purge", "oidc:billing", "uri:a"):
            expected.append(f"oidc:{name}")
            assert actors(channel, issuer.token(sub=name, permissions=["write", "audit"])) == expected


def test_a_token_is_rejected_once_it_has_expired(
    caller: grpc.Channel, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    token = issuer.token()
    assert reason(caller, token) == ADMITTED
    monkeypatch.setattr(principal, "time", SimpleNamespace(time=lambda: time.time() + 3600))
    assert reason(caller, token) == ADMITTED  # within the leeway
    later = time.time() + 3600 + limits.TOKEN_LEEWAY_SECONDS
    monkeypatch.setattr(principal, "time", SimpleNamespace(time=lambda: later))
    assert reason(caller, token) == "UNAUTHENTICATED"
    assert last_cause(folder) == "expired_token"


# --- the issuer's keys ---


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


# --- the settings ---


SETTINGS = {
    "no audience": ({"oidc-issuer": "https://a.test"}, "--oidc-issuer: needs --oidc-audience"),
    "no issuer": ({"oidc-audience": "a"}, "--oidc-audience: needs --oidc-issuer"),
    "no encryption": ({"oidc-issuer": "http://a.test", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "a query": ({"oidc-issuer": "https://a.test?b", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "no URL": ({"oidc-issuer": "do-not-repeat-me", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
}


@pytest.mark.parametrize(("given", "text"), SETTINGS.values(), ids=SETTINGS)
def test_wrong_settings_are_rejected(tmp_path: Path, given: dict[str, str], text: str) -> None:
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    line = start_refused(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", *flags)
    assert line.startswith(text)
    assert "do-not-repeat-me" not in line


def test_a_server_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda _name: None)
    with (
        pytest.raises(SettingError, match=r"^--oidc-issuer: needs the extra caseload-server\[oidc\]"),
        serving(tmp_path, oidc_issuer="https://a.test", oidc_audience="a"),
    ):
        pass
