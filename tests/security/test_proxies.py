"""Behind a proxy: the address of the caller, and the calls that no server without credentials may answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.config import Config, SettingError
from caseload_server.rpc.server import CaseloadServer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.process.command_runner import caseload, url
from tests.security import tls_files
from tests.security.server_fixture import KeysFile, LogReader, bearer, serving
from tests.security.tls_files import GET, Files
from tests.support.api_driver import ApiDriver
from tests.support.servers import Refusal, refusal
from tests.support.waiting import HUNG_SECONDS, eventually

Headers = tuple[tuple[str, str], ...]
LOOPBACK = "127.0.0.0/8,::1"


def get(address: str, *metadata: tuple[str, str | bytes]) -> Refusal:
    """The error of a Get of an unknown therapist."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel, pytest.raises(grpc.RpcError) as caught:
        TherapistServiceStub(channel).GetTherapist(GET, metadata=metadata, timeout=HUNG_SECONDS)
    return refusal(caught.value)


def logged_peer(folder: Path, keys: KeysFile, proxies: str | None, *metadata: tuple[str, str]) -> str:
    """The peer in the access log of a call from loopback with this metadata."""
    log = folder / "access.log"
    token = keys.add("billing")
    with serving(folder, keys_file=keys.path, access_log=log, behind_proxy=proxies) as server:
        assert get(server.address, *bearer(token), *metadata).reason == "THERAPIST_NOT_FOUND"
        eventually(LogReader(log).lines)
        [line] = LogReader(log).lines()
    return str(line["peer"])


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        ("192.0.2.7", "ipv4:192.0.2.7"),
        (" 192.0.2.7:41234 ", "ipv4:192.0.2.7"),
        ("2001:db8::7", "ipv6:%5B2001:db8::7%5D"),
        ("[2001:DB8::7]:41234", "ipv6:%5B2001:db8::7%5D"),
        ("::ffff:192.0.2.7", "ipv4:192.0.2.7"),
        ("198.51.100.1, 192.0.2.7", "ipv4:192.0.2.7"),
        ("198.51.100.1, 192.0.2.7, 127.0.0.1, ::1", "ipv4:192.0.2.7"),
        ("unknown, 192.0.2.7", "ipv4:192.0.2.7"),
    ],
)
def test_the_peer_of_a_proxys_call_is_the_last_address_that_is_not_a_proxy(
    tmp_path: Path, keys_file: KeysFile, header: str, peer: str
) -> None:
    assert logged_peer(tmp_path, keys_file, LOOPBACK, ("x-forwarded-for", header)) == peer


@pytest.mark.parametrize("proxies", ["::ffff:127.0.0.1", "::ffff:7f00:0/104"])
def test_an_ipv4_mapped_address_stands_for_the_ipv4_address(tmp_path: Path, keys_file: KeysFile, proxies: str) -> None:
    assert logged_peer(tmp_path, keys_file, proxies, ("x-forwarded-for", "192.0.2.7")) == "ipv4:192.0.2.7"


@pytest.mark.parametrize(
    ("proxies", "header"),
    [
        (None, "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.7"),
        (LOOPBACK, ""),
        (LOOPBACK, "192.0.2.7,"),
        (LOOPBACK, "192.0.2.7, unknown"),
        (LOOPBACK, "192.0.2.7, unknown, 127.0.0.1"),
        (LOOPBACK, "192.0.2.256"),
        (LOOPBACK, 'fe80::1%"'),
        (LOOPBACK, "1" * 4000),
    ],
)
def test_a_header_of_a_stranger_and_a_malformed_one_leave_the_address_of_the_connection(
    tmp_path: Path, keys_file: KeysFile, proxies: str | None, header: str
) -> None:
    peer = logged_peer(tmp_path, keys_file, proxies, ("x-forwarded-for", header))
    assert peer.startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize(
    "proxies",
    [
        *("", " ", "10.0.0.0/24,", "proxy.example.org", "10.0.0.1/24", "0.0.0.0/0", "::/0"),
        *("::ffff:0:0/96", "::ffff:10.0.0.1/120", "fe80::1%eth0"),
    ],
)
def test_an_address_of_a_proxy_that_cannot_be_meant_is_rejected(keys_file: KeysFile, proxies: str) -> None:
    with pytest.raises(SettingError, match=r"^--behind-proxy: must be addresses or networks"):
        Config(keys_file=keys_file.path, behind_proxy=proxies).check()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--allow-insecure", "--address", "0.0.0.0:0")])
def test_a_server_behind_a_proxy_requires_credentials(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Otherwise everyone whom the proxy admits is `local`, with all permissions."""
    for flag in ("--behind-proxy", "CASELOAD_BEHIND_PROXY"):
        given = {flag: "127.0.0.1"} if flag.startswith("CASELOAD") else {}
        flags = () if given else (flag, "127.0.0.1")
        ended = caseload(tmp_path, "serve", *arguments, *flags, CASELOAD_DATABASE=url(tmp_path / "db"), **given)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "--behind-proxy: needs --keys-file or --oidc-issuer" in ended.stderr
    assert not (tmp_path / "db").exists()


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaseloadServer]:
    """A server on loopback without credentials."""
    with serving(tmp_path_factory.mktemp("open"), metrics_address="127.0.0.1:0") as server:
        yield server


FORWARDED: list[Headers] = [
    (("x-forwarded-for", "192.0.2.7"),),
    (("x-forwarded-for", "192.0.2.7, 127.0.0.1"),),
    (("x-forwarded-for", "127.0.0.1, 192.0.2.7"),),
    (("x-forwarded-for", "unknown"),),
    (("x-real-ip", "192.0.2.7"),),
    (("forwarded", "for=192.0.2.7"),),
    (("via", "1.1 proxy"),),
]


@pytest.mark.parametrize("metadata", FORWARDED, ids=str)
def test_a_server_without_credentials_rejects_a_forwarded_call(open_server: CaseloadServer, metadata: Headers) -> None:
    """Its operators did not know that a proxy makes it reachable for the whole network."""
    found = get(open_server.address, *metadata)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "--behind-proxy" in found.message
    assert "192.0.2.7" not in found.message


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:4711", "::1", "[::1]:4711", "127.0.0.1, ::1"])
def test_a_gateway_on_loopback_can_call_a_server_without_credentials(open_server: CaseloadServer, address: str) -> None:
    headers = (("x-forwarded-for", address), ("x-real-ip", address.partition(",")[0]), ("x-forwarded-host", "a"))
    assert get(open_server.address, *headers).reason == "THERAPIST_NOT_FOUND"


def test_a_watch_of_another_machine_is_rejected_too(open_server: CaseloadServer) -> None:
    with ApiDriver(open_server.address) as api, pytest.raises(grpc.RpcError) as caught:
        next(api.send("WatchChanges", metadata=FORWARDED[0]))
    assert refusal(caught.value).reason == "UNAUTHENTICATED"


def test_health_is_answered_through_any_proxy(open_server: CaseloadServer) -> None:
    with grpc.insecure_channel(open_server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        checked = stub.Check(health_pb2.HealthCheckRequest(), metadata=FORWARDED[0])
    assert checked.status == health_pb2.HealthCheckResponse.SERVING


def test_keys_and_an_explicit_permission_admit_forwarded_calls(tmp_path: Path, keys_file: KeysFile) -> None:
    token = keys_file.add("billing")
    for settings, credentials in (({"keys_file": keys_file.path}, bearer(token)), ({"allow_insecure": True}, ())):
        with serving(tmp_path, **settings) as server:
            for metadata in FORWARDED:
                assert get(server.address, *credentials, *metadata).reason == "THERAPIST_NOT_FOUND"


def test_the_certificate_of_a_proxy_is_not_that_of_its_callers(tmp_path: Path) -> None:
    """A proxy that ends TLS presents its own certificate, for calls of anyone."""
    files = Files.create(tmp_path)
    files.keys.append("dns:proxy.example.org read")
    token = files.keys.add("billing")
    own = files.authority.issue_cert("proxy.example.org")
    tls = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    found: list[tuple[str, str]] = []
    for proxies in ("192.0.2.1", "127.0.0.1"):
        with serving(tmp_path, keys_file=files.keys.path, behind_proxy=proxies, **tls) as server:
            without_key = tls_files.reason(tls_files.channel(server, files, own))
            found.append((without_key, tls_files.reason(tls_files.channel(server, files, own), bearer(token))))
    assert found == [("THERAPIST_NOT_FOUND", "THERAPIST_NOT_FOUND"), ("UNAUTHENTICATED", "THERAPIST_NOT_FOUND")]
