"""Client certificates over real connections: which name of one names a caller, and which certificates never do."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from caseload.v1 import change_service_pb2, therapist_service_pb2
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.resources_pb2 import Therapist
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import file_reload
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from tests.security.server_fixture import serving
from tests.security.tls_files import Files, Pair, certificate, channel, reason

ADMITTED = "THERAPIST_NOT_FOUND"
REFUSED = "UNAUTHENTICATED"
DNS, URI = x509.DNSName, x509.UniformResourceIdentifier


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.create(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[CaseloadServer]:
    """A server that requires client certificates and reads its keys file on every call."""
    paths: dict[str, Any] = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
        folder: Path = tmp_path_factory.mktemp("store")
        with serving(folder, keys_file=files.keys.path, access_log=folder / "access.log", **paths) as started:
            yield started


def outcome(server: CaseloadServer, files: Files, lines: str, client: Pair) -> str:
    """The error reason of a call with a certificate, to a server with these lines in its keys file."""
    files.keys.replace(f"{lines}\n")
    return reason(channel(server, files, client))


def test_each_name_of_a_certificate_can_name_its_caller(server: CaseloadServer, files: Files) -> None:
    uri = "spiffe://example.org/a"
    client = certificate(files.authority, DNS("b.test"), URI(uri), DNS("a.test"), common_names=["common", "other"])
    for line in (f"uri:{uri}", "dns:a.test", "dns:b.test", "cn:common", "cn:other"):
        assert outcome(server, files, f"{line} read", client) == ADMITTED, line
        assert outcome(server, files, f"{line} write", client) == "PERMISSION_DENIED", line
        assert outcome(server, files, f"{line}x read", client) == REFUSED, line


def test_the_name_of_the_line_is_stored(server: CaseloadServer, files: Files) -> None:
    files.keys.replace("dns:a.test write,audit\n")
    with channel(server, files, files.authority.issue_cert("a.test")) as opened:
        request = therapist_service_pb2.CreateTherapistRequest(therapist=Therapist(display_name="A"))
        TherapistServiceStub(opened).CreateTherapist(request)
        log = ChangeServiceStub(opened).ListChanges(change_service_pb2.ListChangesRequest())
    assert [one.actor for one in log.change_sets] == ["dns:a.test"]


def test_a_certificate_of_several_lines_is_rejected(server: CaseloadServer, files: Files) -> None:
    client = certificate(files.authority, DNS("a.test"), DNS("b.test"), common_names=["common"])
    for lines in ("dns:a.test read\ndns:b.test read,write", "dns:a.test read\ncn:common read"):
        assert outcome(server, files, lines, client) == REFUSED


def test_a_certificate_never_has_the_permissions_of_a_key(server: CaseloadServer, files: Files) -> None:
    """A line with a key takes no prefix, and without one no name of a certificate equals it."""
    files.keys.replace("")
    files.keys.add("full")
    of_the_key = files.keys.path.read_text()
    clients = {
        "uri": certificate(files.authority, URI("full")),
        "dns": certificate(files.authority, DNS("full")),
        "cn": certificate(files.authority, common_names=["full"]),
    }
    for prefix, client in clients.items():
        assert outcome(server, files, of_the_key, client) == REFUSED
        assert outcome(server, files, f"{prefix}:{of_the_key}", client) == REFUSED
        assert outcome(server, files, f"{prefix}:full read", client) == ADMITTED


@pytest.mark.parametrize("line", ["uri:a.test", "dns:a.test", "cn:a.test"])
def test_a_name_of_one_kind_does_not_stand_for_another(server: CaseloadServer, files: Files, line: str) -> None:
    clients = {
        "uri:a.test": certificate(files.authority, URI("a.test")),
        "dns:a.test": certificate(files.authority, DNS("a.test")),
        "cn:a.test": certificate(files.authority, common_names=["a.test"]),
        "email": certificate(files.authority, x509.RFC822Name("a.test")),
        "prefixed": certificate(files.authority, DNS(line), URI(line), common_names=[line]),
    }
    found = {kind: outcome(server, files, f"{line} read", client) for kind, client in clients.items()}
    assert found == {kind: ADMITTED if kind == line else REFUSED for kind in clients}


@pytest.mark.parametrize("control", ["\0", "\n", "\x1f", "\x7f"], ids=["NUL", "newline", "unit separator", "delete"])
def test_a_control_character_in_any_name_rejects_the_certificate(
    server: CaseloadServer, files: Files, control: str
) -> None:
    lines = "uri:full read\ndns:full read\ncn:full read"
    evil = f"full{control}.evil.test"
    clients = [
        certificate(files.authority, DNS(evil)),
        certificate(files.authority, URI(evil)),
        certificate(files.authority, common_names=[evil]),
        certificate(files.authority, DNS("full"), URI(evil)),
        certificate(files.authority, DNS(f"full{control}")),
        certificate(files.authority, URI(f"{control}full")),
    ]
    assert [outcome(server, files, lines, client) for client in clients] == [REFUSED] * len(clients)


def test_a_wildcard_names_no_caller(server: CaseloadServer, files: Files) -> None:
    wildcard = certificate(files.authority, DNS("*.example.org"), common_names=["*.example.org"])
    single = certificate(files.authority, DNS("a.example.org"))
    lines = "dns:a.example.org read\ncn:a.example.org read"
    assert outcome(server, files, lines, wildcard) == REFUSED
    assert outcome(server, files, "dns:*.example.org read\ncn:* read", wildcard) == REFUSED
    assert outcome(server, files, "dns:*.example.org read", single) == REFUSED


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x30\x03\x82\x01\xff"], ids=["empty", "garbage", "not ASCII"])
def test_names_that_cannot_be_parsed_reject_the_certificate(
    server: CaseloadServer, files: Files, content: bytes
) -> None:
    broken = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, content)
    client = certificate(files.authority, common_names=["common"], extensions=[broken])
    assert outcome(server, files, "cn:common read", client) in {REFUSED, "UNAVAILABLE"}  # BoringSSL may refuse it first


@pytest.mark.parametrize(("begins", "ends"), [(-2, -1), (1, 2)], ids=["expired", "not yet valid"])
def test_a_certificate_is_rejected_outside_its_time(
    server: CaseloadServer, files: Files, begins: int, ends: int
) -> None:
    hour = timedelta(hours=1)
    client = certificate(files.authority, DNS("a.test"), begins=begins * hour, ends=ends * hour)
    assert outcome(server, files, "dns:a.test read", client) == "UNAVAILABLE"


def test_a_line_of_a_certificate_can_expire(server: CaseloadServer, files: Files) -> None:
    client = certificate(files.authority, DNS("a.test"))
    assert outcome(server, files, "dns:a.test read expires:2999-01-01T00:00:00Z", client) == ADMITTED
    assert outcome(server, files, "dns:a.test read expires:2020-01-01T00:00:00Z", client) == REFUSED
