"""`caseload check` against healthy servers and against every failure that a probe can meet."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.process.command_runner import CASELOAD, caseload, refusal, url
from tests.security.server_fixture import KeysFile
from tests.support.ports import need_ipv6
from tests.support.servers import ServerProcess
from tests.support.waiting import NEVER_SECONDS, eventually
from tests.support.write_lock import holding_the_lock

SLOW_READINESS = (sys.executable, str(Path(__file__).with_name("slow_readiness_command.py")))
READY = (0, "caseload: ready\n", "")
ALIVE = (0, "caseload: alive\n", "")
Ended = tuple[int, str, str]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def checked(folder: Path, *arguments: str, **variables: str) -> Ended:
    """Runs a check with the longest timeout by default. Returns its exit code and output."""
    ended = caseload(folder, "check", "--timeout", "60", *arguments, **variables)
    return ended.returncode, ended.stdout, ended.stderr


def failed(*words: str) -> Ended:
    return 1, "", f"caseload: not {' '.join(words)}\n"


def pair(folder: Path, authority: trustme.CA, name: str = "caseload.internal", **when: Any) -> dict[str, str]:
    """The variables of a certificate for a name that is not of this machine."""
    made = authority.issue_cert(name, **when)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(made.private_key_pem.bytes())
    return {"CASELOAD_TLS_CERT": str(cert), "CASELOAD_TLS_KEY": str(key)}


def trusted(folder: Path, authority: trustme.CA, name: str = "ca.pem") -> str:
    (folder / name).write_bytes(authority.cert_pem.bytes())
    return str(folder / name)


@contextmanager
def serving(folder: Path, variables: dict[str, str], *arguments: str) -> Iterator[tuple[ServerProcess, dict[str, str]]]:
    """A server and its variables, including its address, for a probe beside it."""
    with ServerProcess(url(folder / "caseload.db"), *arguments, environment=variables) as server:
        yield server, {**variables, "CASELOAD_ADDRESS": server.address}


@pytest.fixture
def with_keys(tmp_path: Path) -> dict[str, str]:
    return {"CASELOAD_KEYS_FILE": str(KeysFile(tmp_path / "keys").path)}


def test_a_server_that_serves_is_ready_and_alive(tmp_path: Path) -> None:
    with serving(tmp_path, {}) as (server, variables):
        assert checked(tmp_path, **variables) == checked(tmp_path, "--address", server.address) == READY
        assert checked(tmp_path, "--liveness", **variables) == ALIVE


def test_a_check_of_several_workers_on_one_port_succeeds(tmp_path: Path) -> None:
    with serving(tmp_path, {}, "--workers", "2") as (_, variables):
        assert checked(tmp_path, **variables) == READY


@pytest.mark.parametrize("every", ["0.0.0.0", "[::]"])
def test_a_check_uses_loopback_when_the_server_listens_on_every_address(tmp_path: Path, every: str) -> None:
    if every == "[::]":
        need_ipv6()
    with serving(tmp_path, {}, "--address", f"{every}:0", "--allow-insecure") as (_, variables):
        assert checked(tmp_path, **variables) == READY


def test_a_stopped_server_is_neither_ready_nor_alive(tmp_path: Path) -> None:
    with serving(tmp_path, {}) as (server, variables):
        assert server.stop()[0] == 0
        assert checked(tmp_path, **variables) == failed("ready: cannot be reached, or requires TLS")
        assert checked(tmp_path, "--liveness", **variables) == failed("alive: cannot be reached, or requires TLS")


def test_a_draining_server_is_alive_and_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, {}, "--drain-seconds", str(NEVER_SECONDS)) as (server, variables):
        server.process.terminate()
        not_serving = failed("ready: caseload.v1.AssignmentService is NOT_SERVING")
        eventually(lambda: checked(tmp_path, **variables) == not_serving)
        assert checked(tmp_path, "--liveness", **variables) == ALIVE


def test_a_waiting_write_does_not_change_readiness(database_url: str, tmp_path: Path) -> None:
    with ServerProcess(database_url, command=SLOW_READINESS) as server, holding_the_lock(database_url):
        assert checked(tmp_path, "--address", server.address) == READY


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_check_of_a_hung_server_fails_in_bounded_time(
    tmp_path: Path, *, encrypted: bool, authority: trustme.CA, with_keys: dict[str, str]
) -> None:
    variables = {**pair(tmp_path, authority), **with_keys} if encrypted else {}
    with serving(tmp_path, variables) as (server, known):
        server.process.send_signal(signal.SIGSTOP)
        assert checked(tmp_path, "--timeout", "1", **known) == failed("ready: does not answer in time")
        server.process.send_signal(signal.SIGCONT)
        assert checked(tmp_path, **known) == READY


def test_a_check_over_tls_needs_the_servers_settings_and_no_key(
    tmp_path: Path, authority: trustme.CA, with_keys: dict[str, str]
) -> None:
    with serving(tmp_path, {**pair(tmp_path, authority), **with_keys}, "--address", "0.0.0.0:0") as (_, variables):
        assert checked(tmp_path, **variables) == READY
        assert checked(tmp_path, "--liveness", **variables) == ALIVE
        ca = trusted(tmp_path, authority)
        assert checked(tmp_path, **variables, CASELOAD_TLS_CA=ca) == READY
        address = ("--address", variables["CASELOAD_ADDRESS"])
        assert checked(tmp_path, *address, "--tls-ca", ca) == READY
        assert checked(tmp_path, *address) == failed("ready: cannot be reached, or requires TLS")


def test_a_check_accepts_a_wildcard_certificate(
    tmp_path: Path, authority: trustme.CA, with_keys: dict[str, str]
) -> None:
    with serving(tmp_path, {**pair(tmp_path, authority, "*.example.org"), **with_keys}) as (_, variables):
        assert checked(tmp_path, **variables) == READY


def test_a_check_over_mutual_tls_sends_the_servers_or_a_given_certificate(
    tmp_path: Path, authority: trustme.CA, with_keys: dict[str, str]
) -> None:
    ca = trusted(tmp_path, authority)
    settings = {**pair(tmp_path, authority), **with_keys, "CASELOAD_TLS_CLIENT_CA": ca}
    with serving(tmp_path, settings) as (_, variables):
        assert checked(tmp_path, **variables) == READY
        variables["CASELOAD_TLS_CA"] = ca
        assert checked(tmp_path, **variables | pair(tmp_path, authority, "probe")) == READY
        refused = failed("ready: the TLS handshake failed, or the server rejected the client certificate")
        assert checked(tmp_path, **variables | pair(tmp_path, trustme.CA(), "stranger")) == refused
        assert checked(tmp_path, **variables | {"CASELOAD_TLS_CERT": "", "CASELOAD_TLS_KEY": ""}) == refused


def test_a_check_rejects_a_wrong_certificate(tmp_path: Path, authority: trustme.CA, with_keys: dict[str, str]) -> None:
    theirs = pair(tmp_path, trustme.CA(), "impostor")
    with serving(tmp_path, {**theirs, **with_keys}) as (_, variables):
        not_trusted = failed("ready: its certificate is not trusted (unable to get local issuer certificate)")
        assert checked(tmp_path, **variables | pair(tmp_path, authority)) == not_trusted
        assert checked(tmp_path, **variables, CASELOAD_TLS_CA=trusted(tmp_path, authority)) == not_trusted


def test_a_check_rejects_an_expired_certificate(
    tmp_path: Path, authority: trustme.CA, with_keys: dict[str, str]
) -> None:
    past: dict[str, Any] = {
        "not_before": datetime.now(UTC) - timedelta(2),
        "not_after": datetime.now(UTC) - timedelta(1),
    }
    with serving(tmp_path, {**pair(tmp_path, authority, **past), **with_keys}) as (_, variables):
        assert checked(tmp_path, **variables) == failed(
            "ready: its certificate is not trusted (certificate has expired)"
        )


def test_a_check_rejects_a_certificate_of_another_host(
    tmp_path: Path, authority: trustme.CA, with_keys: dict[str, str]
) -> None:
    for name, ended in (
        ("localhost", READY),
        ("other.example.org", failed("ready: its certificate is not trusted (Hostname mismatch)")),
    ):
        with serving(tmp_path, {**pair(tmp_path, authority, name), **with_keys}) as (_, variables):
            port = variables["CASELOAD_ADDRESS"].rpartition(":")[2]
            # LOCALHOST in capitals is an ordinary name that resolves everywhere.
            assert checked(tmp_path, **variables | {"CASELOAD_ADDRESS": f"LOCALHOST:{port}"}) == ended


def test_a_check_over_tls_of_a_plaintext_server_fails(tmp_path: Path, authority: trustme.CA) -> None:
    with serving(tmp_path, {}) as (_, variables):
        code, said, line = checked(tmp_path, **variables, **pair(tmp_path, authority))
    assert (code, said) == (1, "")
    assert line.startswith("caseload: not ready: the TLS handshake failed")


def test_a_check_ignores_a_proxy_in_the_environment(tmp_path: Path) -> None:
    unreachable = "http://127.0.0.1:1"
    with serving(tmp_path, {}) as (_, variables):
        assert (
            checked(tmp_path, **variables, http_proxy=unreachable, https_proxy=unreachable, grpc_proxy=unreachable)
            == READY
        )


def test_a_check_of_another_program_fails(tmp_path: Path) -> None:
    command = [CASELOAD[0], "-m", "http.server", "--bind", "127.0.0.1", "0"]
    quiet = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
        assert other.stdout
        port = other.stdout.readline().split()[5].decode()
        code, said, line = checked(tmp_path, "--address", f"127.0.0.1:{port}")
        other.kill()
    assert (code, said) == (1, "")
    assert line.startswith("caseload: not ready: ")


def test_a_check_of_a_silent_listener_fails_in_bounded_time(tmp_path: Path, authority: trustme.CA) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for variables in ({}, pair(tmp_path, authority)):
            ended = checked(tmp_path, "--timeout", "1", "--address", address, **variables)
            assert ended == failed("ready: does not answer in time")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--address", "nowhere"), "--address: must be HOST:PORT"),
        (("--address", "do-not-repeat-me:port"), "--address: must be HOST:PORT"),
        (("--address", "127.0.0.1:0"), "--address: needs the port"),
        (("--timeout", "0"), "--timeout: is not valid"),
        (("--timeout", "nan"), "--timeout: is not valid"),
        (("--tls-ca", "do-not-repeat-me"), "--tls-ca: cannot be read"),
        (("--tls-cert", "do-not-repeat-me"), "--tls-cert: cannot be read"),
        (("--tls-ca", "text"), "--tls-ca: is not a PEM certificate"),
        (("--tls-cert", "text"), "--tls-cert: is not a PEM certificate"),
        (("--tls-key", "text"), "--tls-key: needs --tls-cert"),
        (
            ("--tls-ca", "ca.pem", "--tls-cert", "ca.pem", "--tls-key", "text"),
            "--tls-cert: is not a PEM certificate, or",
        ),
        (("--token", "do-not-repeat-me"), "--token: is not a known option"),
    ],
    ids=" ".join,
)
def test_a_bad_setting_has_another_exit_code_than_a_bad_server(
    tmp_path: Path, authority: trustme.CA, arguments: tuple[str, ...], line: str
) -> None:
    (tmp_path / "text").touch(mode=0o600)
    (tmp_path / "text").write_text("do-not-repeat-me")
    trusted(tmp_path, authority)
    said = refusal(tmp_path, "check", *arguments)
    assert said.startswith(line)
    assert "repeat" not in said
