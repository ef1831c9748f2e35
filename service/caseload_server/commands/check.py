"""`caseload check`: checks the health of a running server.

It is for probes on the server's machine, which cannot connect over TLS by themselves. It needs only the settings of the
server. The health service needs no key.
"""

import ipaddress
import re
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from caseload_server.commands.options import option
from caseload_server.commands.standard_streams import print_line, print_notice
from caseload_server.config import Config, SettingError, host_and_port

if TYPE_CHECKING:
    import grpc

_file: Final = click.Path(path_type=Path)
_HOST_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9.-]{0,252}")
_TIMED_OUT: Final = "does not answer in time"


class _CheckFailed(Exception):
    """The server is not ready, or not reachable. The text says why, in one line."""


class _Server(NamedTuple):
    """The server to check."""

    host: str
    port: int
    deadline: float
    """Until when to wait, by time.monotonic(), in seconds."""

    def remaining_seconds(self) -> float:
        return max(0.01, self.deadline - time.monotonic())

    def verified_name(self) -> str | None:
        """Returns the name that the certificate must contain.

        Returns None for a loopback address: the certificate is issued for the name that callers use.
        """
        try:
            return None if ipaddress.ip_address(self.host).is_loopback else self.host
        except ValueError:
            return self.host

    def target(self) -> str:
        """Returns the address in the format of grpc."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@click.command()
@option("--address", metavar="HOST:PORT", default=Config.address, help="Address of the server. HOST can be a name.")
@option("--tls-cert", type=_file, help="Certificate of the server, PEM. Trusted, and used as the client certificate.")
@option("--tls-key", type=_file, help="Private key of --tls-cert, PEM.")
@option("--tls-ca", type=_file, help="Authority to trust instead of --tls-cert, PEM.")
@click.option("--liveness", is_flag=True, help="Check only that the process answers, not its database.")
@click.option("--timeout", type=click.IntRange(1, 60), default=3, show_default=True, help="Seconds to wait.")
def check(*, address: str, liveness: bool, timeout: int, **files: Path | None) -> int:
    """Check whether a running server is ready. Prints one line, and exits with code 0 or 1."""
    from caseload_server.observability.readiness import LIVENESS_SERVICE, READINESS_SERVICES

    if files["tls_key"] and not files["tls_cert"]:
        raise SettingError("--tls-key", "needs --tls-cert")
    server = _Server(*_host_and_port(address), time.monotonic() + timeout)
    status = "alive" if liveness else "ready"
    try:
        credentials, name = None, ""
        if files["tls_ca"] or files["tls_cert"]:
            credentials, name = _tls_credentials(server, **files)
        _check_health(server, credentials, name, (LIVENESS_SERVICE,) if liveness else READINESS_SERVICES)
    except _CheckFailed as error:
        print_notice(f"caseload: not {status}: {error}")
        return 1
    with suppress(SettingError):  # the exit code is the result
        print_line(f"caseload: {status}")
    return 0


def _host_and_port(address: str) -> tuple[str, int]:
    name, _, port = address.rpartition(":")
    is_name = _HOST_NAME.fullmatch(name) and name != "localhost"
    host, number = host_and_port("--address", f"127.0.0.1:{port}" if is_name else address)
    if not number:
        raise SettingError("--address", "needs the port that the server listens on")
    if is_name:
        return name, number
    ip = ipaddress.ip_address(host.strip("[]"))
    if ip.is_unspecified:  # a server on all addresses also listens on loopback
        return ("127.0.0.1" if ip.version == 4 else "::1"), number
    return str(ip), number


def _tls_credentials(
    server: _Server, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> "tuple[grpc.ChannelCredentials, str]":
    """Returns the channel credentials, and a name in the server's certificate. Raises _CheckFailed and SettingError."""
    import grpc

    from caseload_server.private_files import read_private
    from caseload_server.security.tls import NOT_A_PAIR, NOT_PEM, read_file

    roots = read_file("--tls-ca", tls_ca) if tls_ca else read_file("--tls-cert", tls_cert or Path())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate can be the trusted one
    context.check_hostname = server.verified_name() is not None
    context.set_alpn_protocols(["h2"])
    pair: tuple[bytes, bytes] | tuple[()] = ()
    try:
        context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise SettingError("--tls-ca" if tls_ca else "--tls-cert", NOT_PEM) from None
    if tls_cert and tls_key:
        pair = read_private("--tls-key", tls_key), read_file("--tls-cert", tls_cert)
        try:
            context.load_cert_chain(tls_cert, tls_key, password="")
        except (ssl.SSLError, OSError, ValueError):
            raise SettingError("--tls-cert", NOT_A_PAIR) from None
    return grpc.ssl_channel_credentials(roots, *pair), _certificate_name(server, context)


def _certificate_name(server: _Server, context: ssl.SSLContext) -> str:
    """Connects over TLS, and returns a name in the server's certificate. Raises _CheckFailed.

    grpc alone would not do: it needs the name, and does not report why a handshake fails.
    """
    try:
        with socket.create_connection((server.host, server.port), server.remaining_seconds()) as plain:
            plain.settimeout(server.remaining_seconds())
            with context.wrap_socket(plain, server_hostname=server.verified_name()) as encrypted:
                certificate: Any = encrypted.getpeercert()
                rejected = not encrypted.recv(1)  # TLS 1.3 verifies the client certificate after the handshake
    except ssl.SSLCertVerificationError as error:
        raise _CheckFailed(f"its certificate is not trusted ({error.verify_message.partition(',')[0]})") from None
    except ssl.SSLError:
        rejected = True
    except TimeoutError:
        raise _CheckFailed(_TIMED_OUT) from None
    except OSError:
        raise _CheckFailed("cannot be reached") from None
    if rejected:
        raise _CheckFailed("the TLS handshake failed, or the server rejected the client certificate")
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    names += [name for part in certificate["subject"] for kind, name in part if kind == "commonName"]
    return server.verified_name() or next(iter(names), "").replace("*", "any")


def _check_health(
    server: _Server, credentials: "grpc.ChannelCredentials | None", name: str, services: tuple[str, ...]
) -> None:
    """Checks that every service is SERVING. Raises _CheckFailed. Args: name, in the server's certificate."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A proxy from the environment would lead to another machine.
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if credentials:
        options.append(("grpc.ssl_target_name_override", name))
        channel = grpc.secure_channel(server.target(), credentials, options)
    else:
        channel = grpc.insecure_channel(server.target(), options)
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        requests = [health_pb2.HealthCheckRequest(service=service) for service in services]
        responses = [stub.Check.future(request, timeout=server.remaining_seconds()) for request in requests]
        for service, response in zip(services, responses, strict=True):
            try:
                status = response.result().status
            except grpc.RpcError as error:
                raise _CheckFailed(_error_text(error)) from None
            if status != health_pb2.HealthCheckResponse.SERVING:
                status_name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
                raise _CheckFailed(f"{service or 'the process'} is {status_name}")


def _error_text(error: Any) -> str:
    match error.code().name:
        case "UNAVAILABLE":
            return "cannot be reached, or requires TLS"
        case "DEADLINE_EXCEEDED":
            return _TIMED_OUT
        case other:
            return f"the health check failed with {other}"
