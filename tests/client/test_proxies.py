"""Proxies that the environment names: calls to the caller's own machine do not go through them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from caseload.client.settings import TlsFiles, channel_settings

from tests.security.server_fixture import serving
from tests.security.tls_files import Files
from tests.support.waiting import HUNG_SECONDS

SYNC = """if True:
    import sys
    from caseload.client import connect
    from caseload.v1.therapist_service_pb2 import ListTherapistsRequest
    target, ca, cert, key = sys.argv[1:]
    with connect(target, tls_ca=ca, tls_cert=cert, tls_key=key) as caseload:
        caseload.therapists.ListTherapists(ListTherapistsRequest())"""
AIO = """if True:
    import asyncio, sys
    from caseload.client.aio import connect
    from caseload.v1.therapist_service_pb2 import ListTherapistsRequest
    async def main(target, ca, cert, key):
        async with connect(target, tls_ca=ca, tls_cert=cert, tls_key=key) as caseload:
            await caseload.therapists.ListTherapists(ListTherapistsRequest())
    asyncio.run(main(*sys.argv[1:]))"""
NO_PROXY = ("grpc.enable_http_proxy", 0)


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files.create(tmp_path)
    files.keys.append("cn:reports read")
    return files


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["https_proxy", "http_proxy", "grpc_proxy"])
@pytest.mark.parametrize(("code", "host"), [(SYNC, "127.0.0.1"), (AIO, "localhost")], ids=["sync", "aio"])
def test_tls_on_loopback_bypasses_the_proxy_of_the_environment(
    files: Files, proxy: socket.socket, variable: str, code: str, host: str
) -> None:
    tmp_path = files.cert.parent
    made = files.authority.issue_cert("reports.example", common_name="reports")
    (tmp_path / "own.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    (tmp_path / "own.key").write_bytes(made.private_key_pem.bytes())
    tls = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    with serving(tmp_path, keys_file=files.keys.path, **tls) as server:
        target = f"{host}:{server.address.rpartition(':')[2]}"
        arguments = [target, str(files.client_ca), str(tmp_path / "own.pem"), str(tmp_path / "own.key")]
        others = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment = {**others, variable: f"http://127.0.0.1:{proxy.getsockname()[1]}"}
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run(command, env=environment, timeout=HUNG_SECONDS, check=True)
    proxy.settimeout(0.1)
    with pytest.raises(TimeoutError):
        proxy.accept()


LOCAL = (
    *("localhost:1", "LocalHost:1", "localhost.:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"),
    *("dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "ipv6:%5B::1%5D:1"),
    *("unix:caseload.sock", "unix:///run/caseload.sock", "unix-abstract:caseload"),
)
REMOTE = (
    "caseload.example.org:1",
    "192.0.2.1:1",
    "ipv4:127.0.0.1:1,192.0.2.1:1",
    "localhost.example.org:1",
    "0.0.0.0:1",
)


@pytest.mark.parametrize("target", LOCAL)
def test_no_target_on_this_machine_has_a_proxy(files: Files, target: str) -> None:
    settings = channel_settings(target, TlsFiles(files.client_ca, None, None), (), has_key=True, allow_insecure=False)
    assert settings.credentials is not None
    assert NO_PROXY in settings.options


@pytest.mark.parametrize("target", REMOTE)
def test_other_targets_with_tls_may_have_a_proxy(files: Files, target: str) -> None:
    settings = channel_settings(target, TlsFiles(files.client_ca, None, None), (), has_key=True, allow_insecure=False)
    assert NO_PROXY not in settings.options


def test_an_option_of_the_application_may_ask_for_the_proxy(files: Files) -> None:
    given = [("grpc.enable_http_proxy", 1)]
    tls = TlsFiles(files.client_ca, None, None)
    settings = channel_settings("localhost:1", tls, given, has_key=False, allow_insecure=False)
    assert settings.options.index(given[0]) < settings.options.index(NO_PROXY)  # of duplicates the first counts
