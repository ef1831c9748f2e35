"""TLS and client certificates; the tests generate the certificates."""

import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import file_reload, principal
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.observability.metrics_client import numbers
from tests.process.command_runner import refusal as start_refused
from tests.security.server_fixture import bearer, serving
from tests.security.tls_files import GET, Files, certificate, channel, reason, reason_on
from tests.support.servers import ServerProcess, refusal
from tests.support.waiting import HUNG_SECONDS, eventually, join


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files.create(tmp_path)


@pytest.fixture
def server(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseloadServer]:
    """A server with TLS and keys that checks its files for changes on every call."""
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    with serving(tmp_path, keys_file=files.keys.path, tls_cert=files.cert, tls_key=files.key) as started:
        yield started


@pytest.fixture
def mutual(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseloadServer]:
    """The same server, but it requires client certificates."""
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    paths: dict[str, Any] = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    with serving(tmp_path, keys_file=files.keys.path, **paths) as started:
        yield started


def test_a_caller_with_a_key_is_authenticated_over_tls(server: CaseloadServer, files: Files) -> None:
    token = files.keys.add("billing")
    assert reason(channel(server, files), bearer(token)) == "THERAPIST_NOT_FOUND"
    assert reason(channel(server, files)) == "UNAUTHENTICATED"
    assert reason(grpc.insecure_channel(server.address), bearer(token)) == "UNAVAILABLE"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_accepted(server: CaseloadServer, files: Files, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=files.authority.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    host, port = server.address.split(":")
    plain = socket.create_connection((host, int(port)), timeout=HUNG_SECONDS)
    with plain, context.wrap_socket(plain, server_hostname=host) as wrapped:
        assert wrapped.version() == version.name.replace("_", ".")


HANDSHAKE = b"\x16"
"""The record type of an accepting server. A rejecting server sends another type or closes the connection."""


@pytest.mark.parametrize(
    ("version", "continues"), [(b"\3\1", False), (b"\3\2", False), (b"\3\3", True)], ids=["1.0", "1.1", "1.2"]
)
def test_tls_versions_before_1_2_are_rejected(server: CaseloadServer, version: bytes, *, continues: bool) -> None:
    """The test sends raw bytes, because the client's OpenSSL may not support the old versions."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=HUNG_SECONDS) as plain:
        plain.sendall(client_hello(version))
        assert (first_byte(plain) == HANDSHAKE) == continues


def first_byte(connection: socket.socket) -> bytes:
    """The first byte of the answer; empty if the server closes the connection."""
    try:
        return connection.recv(1)
    except ConnectionError:
        return b""


def client_hello(version: bytes) -> bytes:
    """The first record of a TLS client up to 1.2 (RFC 5246, 7.4.1.2), with cipher suites for each version."""
    suites = bytes.fromhex("c02b c02f c009 c013 c00a c014 002f")  # AES with SHA-256 for 1.2, with SHA-1 for older ones
    extensions = bytes.fromhex(
        "000a 0004 0002 0017"  # supported_groups: secp256r1
        "000b 0002 0100"  # ec_point_formats: uncompressed
        "000d 0006 0004 0403 0401"  # signature_algorithms: SHA-256 with ECDSA, with RSA
        "0010 0005 0003 02 6832"  # application_layer_protocol_negotiation: h2
    )
    body = version + bytes(32) + b"\0" + sized(suites) + b"\1\0" + sized(extensions)
    message = b"\1\0" + sized(body)
    return HANDSHAKE + version + sized(message)


def sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


# --- client certificates ---


def test_a_key_takes_precedence_over_a_certificate(mutual: CaseloadServer, files: Files) -> None:
    files.keys.append("dns:a.example.org read")
    certificate = files.authority.issue_cert("a.example.org")
    writer = files.keys.add("writer", "write")
    assert reason(channel(mutual, files, certificate)) == "THERAPIST_NOT_FOUND"
    assert reason(channel(mutual, files, certificate), bearer(writer)) == "PERMISSION_DENIED"
    assert reason(channel(mutual, files, certificate), bearer("unknown")) == "UNAUTHENTICATED"


def test_a_connection_requires_a_certificate_of_the_authority(mutual: CaseloadServer, files: Files) -> None:
    token = files.keys.add("billing")
    files.keys.append("dns:a.example.org read")
    of_another = trustme.CA().issue_cert("a.example.org")
    assert reason(channel(mutual, files), bearer(token)) == "UNAVAILABLE"
    assert reason(channel(mutual, files, of_another), bearer(token)) == "UNAVAILABLE"


def test_a_certificate_that_expires_on_an_open_connection_is_rejected(
    mutual: CaseloadServer, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.keys.append("dns:a.example.org read")
    with channel(mutual, files, files.authority.issue_cert("a.example.org")) as opened:
        assert reason_on(opened) == "THERAPIST_NOT_FOUND"
        monkeypatch.setattr(principal, "time", SimpleNamespace(time=lambda: sys.float_info.max))
        assert reason_on(opened) == "UNAUTHENTICATED"


# --- certificates change ---


def served_certificate(server: CaseloadServer) -> str:
    """The server certificate of a new connection, as PEM."""
    host, port = server.address.split(":")
    return ssl.get_server_certificate((host, int(port)), timeout=HUNG_SECONDS)


def test_certificates_are_renewed_without_a_restart_or_a_failed_call(server: CaseloadServer, files: Files) -> None:
    metadata = bearer(files.keys.add("billing"))
    failed: list[str] = []
    calls = 0
    enough = threading.Event()

    def call_on_new_connections() -> None:
        nonlocal calls
        while not enough.is_set():
            if (found := reason(channel(server, files), metadata)) != "THERAPIST_NOT_FOUND":
                failed.append(found)
            calls += 1

    with channel(server, files) as kept:
        caller = threading.Thread(target=call_on_new_connections)
        caller.start()
        for _ in range(10):
            made = files.issue()
            eventually(lambda made=made: served_certificate(server).split() == made.decode().split())  # type: ignore[misc]  # bound now
            with pytest.raises(grpc.RpcError) as caught:
                TherapistServiceStub(kept).GetTherapist(GET, metadata=metadata, timeout=HUNG_SECONDS)
            assert refusal(caught.value).reason == "THERAPIST_NOT_FOUND"
        eventually(lambda: calls >= 10)
        enough.set()
        join(caller)
    assert failed == []


@pytest.mark.parametrize("broken", ["cert", "key", "pair", "missing", "mode"])
def test_an_invalid_certificate_pair_keeps_the_old_one_and_is_logged_once(
    server: CaseloadServer, files: Files, broken: str
) -> None:
    before = served_certificate(server)
    other = trustme.CA().issue_cert("127.0.0.1")
    with capture_logs() as logs:
        if broken == "cert":
            files.cert.write_text("do-not-repeat-me")
        elif broken == "key":
            files.key.write_text("do-not-repeat-me")
        elif broken == "pair":
            files.key.write_bytes(other.private_key_pem.bytes())
        elif broken == "mode":
            files.key.chmod(0o604)
        else:
            files.key.unlink()
        for _ in range(3):
            assert served_certificate(server) == before
    [line] = [one for one in logs if "fault" in one]
    assert (line["log_level"], line["fault"].partition(":")[0]) == ("error", line["fault"][:10].rstrip(":"))
    assert line["fault"].startswith(("--tls-cert: ", "--tls-key: "))
    assert "do-not-repeat-me" not in str(logs)
    made = files.issue()
    assert served_certificate(server).split() == made.decode().split()


def test_the_client_authority_changes_without_a_restart(mutual: CaseloadServer, files: Files) -> None:
    files.keys.append("dns:a.example.org read")
    other = trustme.CA()
    theirs = other.issue_cert("a.example.org")
    assert reason(channel(mutual, files, theirs)) == "UNAVAILABLE"
    files.client_ca.write_bytes(other.cert_pem.bytes())
    assert reason(channel(mutual, files, theirs)) == "THERAPIST_NOT_FOUND"
    assert reason(channel(mutual, files, files.authority.issue_cert("a.example.org"))) == "UNAVAILABLE"


# --- the settings ---


@pytest.mark.slow
def test_a_private_key_that_others_can_read_is_rejected(tmp_path: Path, files: Files) -> None:
    files.key.chmod(0o644)
    tls = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    text = "--tls-key: is accessible to other users: run chmod 600 or chmod 640 on it"
    address = ("--address", "127.0.0.1:1")
    assert start_refused(tmp_path, "serve", *address, "--database", "sqlite:///a.db", *tls) == text
    assert start_refused(tmp_path, "check", *address, *tls) == text


@pytest.mark.slow
def test_an_authority_that_others_can_write_is_rejected(tmp_path: Path, files: Files) -> None:
    """A user who can write it can replace the authority, and then pass as any caller."""
    files.client_ca.chmod(0o664)
    flags = {"--tls-cert": files.cert, "--tls-key": files.key, "--tls-client-ca": files.client_ca}
    arguments = [word for each in flags.items() for word in map(str, each)]
    serve = ("serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", str(files.keys.path))
    line = start_refused(tmp_path, *serve, *arguments)
    assert line == "--tls-client-ca: is accessible to other users: run chmod go-w on it"


def test_health_requires_no_credentials(server: CaseloadServer, files: Files) -> None:
    with channel(server, files) as opened:
        health: Any = health_pb2_grpc.HealthStub(opened)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.slow
def test_a_server_beyond_loopback_starts_with_tls_and_keys(tmp_path: Path, files: Files) -> None:
    secure = ("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--keys-file", str(files.keys.path))
    with ServerProcess(f"sqlite:///{tmp_path}/caseload.db", "--address", "0.0.0.0:0", *secure) as server:
        code, log = server.stop()
    assert code == 0
    assert "warning" not in log


@pytest.mark.slow
@pytest.mark.parametrize("given", [("tls",), ("keys",), ()])
def test_a_server_beyond_loopback_requires_tls_and_keys(tmp_path: Path, files: Files, given: tuple[str, ...]) -> None:
    has = {
        "tls": ("--tls-cert", str(files.cert), "--tls-key", str(files.key)),
        "keys": ("--keys-file", str(files.keys.path)),
    }
    arguments = [
        *("serve", "--address", "0.0.0.0:0", "--database", "sqlite:///a.db"),
        *(a for g in given for a in has[g]),
    ]
    assert start_refused(tmp_path, *arguments).startswith("--address: ")
    with ServerProcess(f"sqlite:///{tmp_path}/a.db", *arguments[1:3], *arguments[5:], "--allow-insecure") as server:
        _, log = server.stop()
    assert '"setting": "--allow-insecure"' in log.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key", "--tls-client-ca"])
def test_incomplete_tls_settings_are_rejected(tmp_path: Path, files: Files, flag: str) -> None:
    serve = ("serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db")
    assert start_refused(tmp_path, *serve, flag, str(files.cert)).startswith(f"{flag}: needs ")


def test_client_certificates_require_a_keys_file(tmp_path: Path, files: Files) -> None:
    serve = ("serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--tls-cert", str(files.cert))
    line = start_refused(tmp_path, *serve, "--tls-key", str(files.key), "--tls-client-ca", str(files.client_ca))
    assert line.startswith("--tls-client-ca: needs --keys-file")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key", "--tls-client-ca"])
@pytest.mark.parametrize("content", [None, b"do-not-repeat-me"], ids=["missing", "no PEM"])
def test_invalid_certificate_files_are_rejected(tmp_path: Path, files: Files, flag: str, content: bytes | None) -> None:
    flags = {"--tls-cert": files.cert, "--tls-key": files.key, "--tls-client-ca": files.client_ca}
    if content is None:
        flags[flag].unlink()
    else:
        flags[flag].write_bytes(content)
    arguments = [word for each in flags.items() for word in map(str, each)]
    serve = ("serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", "keys")
    line = start_refused(tmp_path, *serve, *arguments)
    assert flag in line
    assert "do-not-repeat-me" not in line


@pytest.mark.slow
def test_metrics_report_when_certificates_expire_also_after_a_renewal(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    tls: dict[str, Any] = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    with serving(tmp_path, keys_file=files.keys.path, metrics_address="127.0.0.1:0", **tls) as server:

        def shown(file: str, pem: bytes) -> bool:
            expiry = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
            return numbers(server.metrics_address)("certificate_expiry_time_seconds", file=file) == expiry

        eventually(lambda: shown("tls_client_ca", files.client_ca.read_bytes()))
        eventually(lambda: shown("tls_cert", files.cert.read_bytes()))
        renewed: Any = certificate(files.authority, x509.DNSName("localhost"), ends=timedelta(days=3))
        files.key.write_bytes(renewed[0])
        files.cert.write_bytes(renewed[1])
        eventually(lambda: shown("tls_cert", renewed[1]))
