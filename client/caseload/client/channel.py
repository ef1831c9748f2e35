"""One channel to all instances of Caseload, and the four stubs on it."""

import ipaddress
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Final, Self

import grpc
from caseload.client.call_defaults import ChannelWithDefaults
from caseload.client.watch import Responses, watch
from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from caseload.v1.change_service_pb2 import ChangeFilter, WatchChangesRequest
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub

Options = Sequence[tuple[str, Any]]
File = str | Path

CHANNEL_OPTIONS: Final[Options] = (
    ("grpc.initial_reconnect_backoff_ms", 50),  # the default is 1 s, longer than an instance takes to restart
    ("grpc.max_reconnect_backoff_ms", 150),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # the time limit of an attempt to connect
    ("grpc.keepalive_time_ms", 20_000),  # the server allows a ping every 5 seconds
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", 1024 * 1024),  # the server accepts no larger request
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # its responses are smaller
    ("grpc.service_config_disable_resolution", 1),  # use our service config, whatever the name service has
)


class Caseload:
    """The four services on one channel. Threads may share it. Keep one for the whole process."""

    def __init__(self, channel: grpc.Channel, timeout: float, key: str | None) -> None:
        """Wraps a channel that connect() made; the arguments are those of connect()."""
        self.channel: Final = channel
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._closed = Event()
        defaults: Any = ChannelWithDefaults(channel, timeout, metadata, self._closed)
        self.therapists: Final = TherapistServiceStub(defaults)
        self.patients: Final = PatientServiceStub(defaults)
        self.assignments: Final = AssignmentServiceStub(defaults)
        self.changes: Final = ChangeServiceStub(defaults)

    def watch(self, after_revision: str = "", filter: ChangeFilter | None = None) -> Responses:  # noqa: A002 - the request's name
        """Yields the responses of WatchChanges, and resumes after a restart, a lost connection or a slow reader.

        It ends when this client is closed. Keep the through_revision of each response that you have processed, and pass
        it as after_revision next time.

        Args:
            after_revision: the last revision that you have processed; empty starts from now.
            filter: which changes to send; None sends all.

        Raises grpc.RpcError where resuming does not help, such as REVISION_PRUNED.
        """
        return watch(self.changes, WatchChangesRequest(after_revision=after_revision, filter=filter), self._closed)

    follow = watch

    def close(self) -> None:
        """Ends all watches, and ends calls in flight with CANCELLED. Later calls raise ValueError."""
        self._closed.set()
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(  # noqa: PLR0913 - keyword arguments, each with a default
    target: str,
    *,
    key: str | None = None,
    tls_ca: File | None = None,
    tls_cert: File | None = None,
    tls_key: File | None = None,
    allow_insecure: bool = False,
    timeout: float = 10.0,
    interceptors: Sequence[Any] = (),
    options: Options = (),
) -> Caseload:
    """Returns a client for all instances behind a target. It connects at the first call, and again after each loss.

    Loopback uses plain text unless a tls_ argument is given. Every other target uses TLS unless allow_insecure is set.

    Args:
        target: a gRPC target: "dns:///caseload.example.org:50051" or "ipv4:192.0.2.1:50051,192.0.2.2:50051".
        key: the caller's API key, sent with each call.
        tls_ca: PEM file of the authority that issued the server's certificate. The default is the system's.
        tls_cert: PEM file of the client certificate with its chain.
        tls_key: PEM file of the client certificate's key.
        allow_insecure: allow plain text beyond loopback. A key is refused with it.
        timeout: default deadline of a call with all its retries, in seconds. Watches have none.
        interceptors: client interceptors of the channel, for instance for tracing.
        options: channel options; they take precedence over the client's own.

    Raises ValueError where the arguments contradict each other, and OSError where a file cannot be read.
    """
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise ValueError("key: must be visible ASCII characters")  # grpc would quote the key in its message
    credentials = _credentials(target, tls_ca, tls_cert, tls_key, allow_insecure=allow_insecure)
    if key and credentials is None and not _is_loopback(target):
        raise ValueError("key: would be sent in plain text; it needs TLS")
    settings = [*options, *CHANNEL_OPTIONS, ("grpc.service_config", service_config())]  # of duplicates the first counts
    if credentials is None:
        settings.append(("grpc.enable_http_proxy", 0))  # a proxy would read the plain text and the key
        channel = grpc.insecure_channel(target, settings)
    else:
        channel = grpc.secure_channel(target, credentials, settings)
    return Caseload(grpc.intercept_channel(channel, *interceptors), timeout, key)


def service_config() -> str:
    """Returns the gRPC service config as JSON.

    It is service_config.json, which serves all languages, with retries of Create added: here each has a request_id.
    """
    config = json.loads(resources.files(__package__).joinpath("service_config.json").read_text())
    repeatable, creates, _ = config["methodConfig"]
    creates["retryPolicy"] = repeatable["retryPolicy"]
    return json.dumps(config)


def _credentials(
    target: str, ca: File | None, cert: File | None, key: File | None, *, allow_insecure: bool
) -> grpc.ChannelCredentials | None:
    if bool(cert) != bool(key):
        raise ValueError("tls_cert and tls_key: give both or neither")
    if not (ca or cert) and (allow_insecure or _is_loopback(target)):
        return None
    root, private, chain = (Path(file).read_bytes() if file else None for file in (ca, key, cert))
    return grpc.ssl_channel_credentials(root, private, chain)


def _is_loopback(target: str) -> bool:
    """Whether every address of a target is a loopback address. A target of another form is not."""
    addresses = re.sub("^(dns:(///)?|ipv4:|ipv6:)", "", target).split(",")
    return all(map(_is_loopback_host, (re.sub(":[0-9]+$", "", address) for address in addresses)))


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
