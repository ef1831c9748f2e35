"""The files of a server with TLS, certificates of callers, and calls over TLS."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import trustme
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.rpc.server import CaseloadServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.security.server_fixture import KeysFile, Metadata
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS

Pair = trustme.LeafCert | tuple[bytes, bytes]
"""A certificate with its key, or the key and the certificate as PEM."""
GET = pb.GetTherapistRequest(therapist_id="t1")
_HOUR = timedelta(hours=1)


class Files(NamedTuple):
    """The files that a server with mutual TLS needs."""

    authority: trustme.CA
    """The authority of the client certificates and the server certificate."""
    cert: Path
    key: Path
    client_ca: Path
    keys: KeysFile

    @classmethod
    def create(cls, folder: Path) -> "Files":
        authority = trustme.CA()
        found = cls(authority, folder / "cert.pem", folder / "key.pem", folder / "ca.pem", KeysFile(folder / "keys"))
        found.client_ca.write_bytes(authority.cert_pem.bytes())
        found.issue()
        return found

    def issue(self, authority: trustme.CA | None = None) -> bytes:
        """Issues another server certificate and returns it as PEM."""
        made = (authority or self.authority).issue_cert("127.0.0.1", "localhost")
        pem = b"".join(part.bytes() for part in made.cert_chain_pems)
        for path, content in ((self.key, made.private_key_pem.bytes()), (self.cert, pem)):
            new = path.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_bytes(content)
            new.rename(path)
        return made.cert_chain_pems[0].bytes()


def certificate(
    authority: trustme.CA,
    *names: x509.GeneralName,
    common_names: Sequence[str] = (),
    begins: timedelta = -_HOUR,
    ends: timedelta = _HOUR,
    extensions: Sequence[x509.ExtensionType] = (),
) -> Pair:
    """A client certificate with any content. Args: begins and ends, from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signing: Any = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    builder = (
        x509.CertificateBuilder(issuer.subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    for extension in (*([x509.SubjectAlternativeName(names)] if names else []), *extensions):
        builder = builder.add_extension(extension, critical=not common_names)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, builder.sign(signing, hashes.SHA256()).public_bytes(pem)


def channel(server: CaseloadServer, files: Files, client: Pair | None = None) -> grpc.Channel:
    if isinstance(client, trustme.LeafCert):
        client = (client.private_key_pem.bytes(), b"".join(part.bytes() for part in client.cert_chain_pems))
    credentials = grpc.ssl_channel_credentials(files.authority.cert_pem.bytes(), *(client or ()))
    return grpc.secure_channel(server.address, credentials, [("grpc.use_local_subchannel_pool", 1)])


def reason(opened: grpc.Channel, metadata: Metadata | None = None) -> str:
    """The error reason of a Get on a channel that it closes, or the status name where the gRPC library rejects it."""
    with opened:
        return reason_on(opened, metadata)


def reason_on(opened: grpc.Channel, metadata: Metadata | None = None) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        TherapistServiceStub(opened).GetTherapist(GET, metadata=metadata, timeout=HUNG_SECONDS)
    if caught.value.code() == grpc.StatusCode.UNAVAILABLE:
        return "UNAVAILABLE"
    return refusal(caught.value).reason
