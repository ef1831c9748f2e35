"""Tokens of an identity provider: a real issuer over TLS, real calls, and every way to forge a token that we know."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
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
from caseload_server.domain import limits
from caseload_server.security import principal
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.security.server_fixture import KeysFile, bearer, serving
from tests.security.token_calls import ADMITTED, last_cause, reason, settings
from tests.support.issuer import AUDIENCE, Issuer, SigningKey

REQUEST_ID = "0190a3c4-0000-7000-8000-000000000001"


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
