"""Proxies that the environment names: the server reaches its own machine without them."""

import os
from pathlib import Path

import grpc
import pytest

from tests.observability.trace_collector import PROMPTLY, collecting, collecting_over_http
from tests.process.command_runner import url
from tests.security.token_calls import ADMITTED, reason
from tests.support.issuer import AUDIENCE, issuing
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually

UNREACHABLE = "http://127.0.0.1:1"
NAMES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy", "all_proxy", "ALL_PROXY")
PROXIES = dict.fromkeys(NAMES, UNREACHABLE)


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "exceptions", [{}, {"no_proxy": "example.org"}, {"NO_PROXY": "example.org", "no_grpc_proxy": ""}]
)
def test_an_identity_provider_on_the_same_machine_needs_no_proxy(tmp_path: Path, exceptions: dict[str, str]) -> None:
    with issuing(tmp_path) as (issuer, authority):
        environment = {**PROXIES, **exceptions, "SSL_CERT_FILE": str(authority)}
        settings = ("--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE)
        with (
            ServerProcess(url(tmp_path / "caseload.db"), *settings, environment=environment) as server,
            grpc.insecure_channel(server.address, [("grpc.enable_http_proxy", 0)]) as caller,
        ):
            eventually(lambda: reason(caller, issuer.token()) == ADMITTED)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_of_traces_on_the_same_machine_needs_no_proxy(tmp_path: Path, protocol: str) -> None:
    with collecting() if protocol == "grpc" else collecting_over_http() as collector:
        exporter = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.address}\n", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        environment = {**PROXIES, **PROMPTLY, **exporter}
        with (
            ServerProcess(url(tmp_path / "caseload.db"), environment=environment) as server,
            grpc.insecure_channel(server.address, [("grpc.enable_http_proxy", 0)]) as caller,
        ):
            reason(caller, "none")
            collector.wait_for("GetTherapist")
