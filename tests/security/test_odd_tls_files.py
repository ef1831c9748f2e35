"""TLS files that are no plain PEM files: pipes, devices, byte order marks, and keys that gRPC cannot use."""

import codecs
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.process.command_runner import SERVE, refusal
from tests.security.server_fixture import serving
from tests.security.tls_files import Files, channel, reason

DATABASE = ("--database", "sqlite:///a.db")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files.create(tmp_path)


@pytest.mark.slow
def test_a_certificate_in_a_pipe_without_a_writer_is_rejected(tmp_path: Path, files: Files) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    line = refusal(tmp_path, *SERVE, *DATABASE, "--tls-cert", str(pipe), "--tls-key", str(files.key))
    assert line == "--tls-cert: is not a regular file"


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-ca"])
def test_check_rejects_a_device_that_never_ends(tmp_path: Path, flag: str) -> None:
    assert refusal(tmp_path, "check", "--address", "127.0.0.1:1", flag, "/dev/zero") == f"{flag}: is not a regular file"


def test_a_byte_order_mark_before_a_certificate_is_ignored(tmp_path: Path, files: Files) -> None:
    for path in (files.cert, files.key, files.client_ca):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    paths = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    with serving(tmp_path, keys_file=files.keys.path, **paths) as server:
        assert reason(channel(server, files, files.authority.issue_cert("a.test"))) == "UNAUTHENTICATED"


@pytest.mark.slow
def test_a_key_that_grpc_cannot_use_is_named_and_not_the_address(tmp_path: Path) -> None:
    """OpenSSL accepts this curve, and BoringSSL does not."""
    key = ec.generate_private_key(ec.SECP256K1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.test")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    encoding = serialization.Encoding.PEM
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(encoding))
    private.touch(0o600)
    private.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    line = refusal(tmp_path, *SERVE, *DATABASE, "--tls-cert", str(cert), "--tls-key", str(private))
    assert line == "--tls-cert: gRPC cannot use it, or --tls-key or --tls-client-ca"
