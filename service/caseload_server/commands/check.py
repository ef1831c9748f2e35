"""The command that asks a running server how it is: for probes beside it, that cannot get through TLS by themselves.

It needs no settings but those of the server. Health asks for no key.
"""

import ipaddress
import re
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from caseload_server.commands.options import option
from caseload_server.config import Config, SettingError, host_and_port

if TYPE_CHECKING:
    import grpc

_file: Final = click.Path(path_type=Path)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9.-]{0,252}")
_IN_TIME: Final = "does not answer in time"


class _Failed(Exception):
    """What is wrong with the server, in one line."""


class _Server(NamedTuple):
    """Whom to ask, and how long."""

    host: str
    port: int
    until: float

    def left(self) -> float:
        """Seconds."""
        return max(0.01, self.until - time.monotonic())

    def name(self) -> str | None:
        """What its certificate must name. On this machine nothing: it is made for the name that callers use."""
        try:
            return None if ipaddress.ip_address(self.host).is_loopback else self.host
        except ValueError:
            return self.host

    def target(self) -> str:
        """As grpc takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@click.command()
@option("--address", metavar="HOST:PORT", default=Config.address, help="Where it listens; HOST can be a name here.")
@option("--tls-cert", type=_file, help="Its certificate, PEM: trusted, and shown to it where it asks for one.")
@option("--tls-key", type=_file, help="The key of that certificate, PEM.")
@option("--tls-ca", type=_file, help="Trust certificates of this authority instead, PEM.")
@click.option("--liveness", is_flag=True, help="Ask whether the process answers, whatever its database does.")
@click.option("--timeout", type=click.IntRange(1, 60), default=3, show_default=True, help="Seconds to wait.")
def check(*, address: str, liveness: bool, timeout: int, **files: Path | None) -> int:
    """Ask a running server whether it is ready: one line, and exit code 0 or 1."""
    from caseload_server.observability.readiness import LIVENESS_SERVICE, READINESS_SERVICES

    if files["tls_key"] and not files["tls_cert"]:
        raise SettingError("--tls-key", "needs --tls-cert")
    server = _Server(*_host_and_port(address), time.monotonic() + timeout)
    what = "alive" if liveness else "ready"
    try:
        credentials, name = None, ""
        if files["tls_ca"] or files["tls_cert"]:
            credentials, name = _over_tls(server, **files)
        _ask(server, credentials, name, (LIVENESS_SERVICE,) if liveness else READINESS_SERVICES)
    except _Failed as failed:
        click.echo(f"caseload: not {what}: {failed}", err=True)
        return 1
    click.echo(f"caseload: {what}")
    return 0


def _host_and_port(address: str) -> tuple[str, int]:
    name, _, port = address.rpartition(":")
    is_name = _NAME.fullmatch(name) and name != "localhost"
    host, number = host_and_port("--address", f"127.0.0.1:{port}" if is_name else address)
    if not number:
        raise SettingError("--address", "needs the port that it listens on")
    if is_name:
        return name, number
    at = ipaddress.ip_address(host.strip("[]"))
    if at.is_unspecified:  # it listens on all addresses, so on this one
        return ("127.0.0.1" if at.version == 4 else "::1"), number
    return str(at), number


def _over_tls(
    server: _Server, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> "tuple[grpc.ChannelCredentials, str]":
    """What a channel needs, and a name that the server's certificate has. Raises _Failed, SettingError."""
    import grpc

    from caseload_server.security.tls import content

    roots = content("--tls-ca", tls_ca) if tls_ca else content("--tls-cert", tls_cert or Path())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate is an authority then
    context.check_hostname = server.name() is not None
    context.set_alpn_protocols(["h2"])
    pair: tuple[bytes, bytes] | tuple[()] = ()
    try:
        context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise SettingError("--tls-ca" if tls_ca else "--tls-cert", "is no PEM certificate") from None
    if tls_cert and tls_key:
        pair = content("--tls-key", tls_key), content("--tls-cert", tls_cert)
        try:
            context.load_cert_chain(tls_cert, tls_key, password="")
        except (ssl.SSLError, OSError, ValueError):
            raise SettingError("--tls-cert", "is no PEM certificate, or --tls-key is not its key, in PEM") from None
    return grpc.ssl_channel_credentials(roots, *pair), _shaken(server, context)


def _shaken(server: _Server, context: ssl.SSLContext) -> str:
    """A handshake of our own: grpc would not tell what fails, and must be given a name. Raises _Failed."""
    try:
        with socket.create_connection((server.host, server.port), server.left()) as plain:
            plain.settimeout(server.left())
            with context.wrap_socket(plain, server_hostname=server.name()) as encrypted:
                certificate: Any = encrypted.getpeercert()
                refused = not encrypted.recv(1)  # with TLS 1.3 it is looked at after the handshake
    except ssl.SSLCertVerificationError as error:
        raise _Failed(f"its certificate is not trusted ({error.verify_message.partition(',')[0]})") from None
    except ssl.SSLError:
        refused = True
    except TimeoutError:
        raise _Failed(_IN_TIME) from None
    except OSError:
        raise _Failed("cannot be reached") from None
    if refused:
        raise _Failed("TLS fails, or our certificate is refused")
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    names += [name for part in certificate["subject"] for kind, name in part if kind == "commonName"]
    return server.name() or next(iter(names), "").replace("*", "any")


def _ask(server: _Server, credentials: "grpc.ChannelCredentials | None", name: str, services: tuple[str, ...]) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A proxy in the environment is for others: what it answered would be of somewhere else.
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if credentials:
        options.append(("grpc.ssl_target_name_override", name))
        channel = grpc.secure_channel(server.target(), credentials, options)
    else:
        channel = grpc.insecure_channel(server.target(), options)
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        requests = [health_pb2.HealthCheckRequest(service=service) for service in services]
        answers = [stub.Check.future(request, timeout=server.left()) for request in requests]
        for service, answer in zip(services, answers, strict=True):
            try:
                status = answer.result().status
            except grpc.RpcError as error:
                raise _Failed(_why(error)) from None
            if status != health_pb2.HealthCheckResponse.SERVING:
                raise _Failed(f"{service or 'it'} is {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")


def _why(error: Any) -> str:
    match error.code().name:
        case "UNAVAILABLE":
            return "cannot be reached, or asks for TLS"
        case "DEADLINE_EXCEEDED":
            return _IN_TIME
        case other:
            return f"health is refused with {other}"
