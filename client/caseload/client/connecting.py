"""One channel to all instances, and the four stubs over it."""

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
from caseload.client.calls import Calls
from caseload.client.following import Answers, follow
from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from caseload.v1.change_service_pb2 import ChangeFilter, WatchChangesRequest
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub

Options = Sequence[tuple[str, Any]]
File = str | Path

CHANNEL_OPTIONS: Final[Options] = (
    ("grpc.initial_reconnect_backoff_ms", 50),  # 1 s by default: an instance that restarts is back sooner
    ("grpc.max_reconnect_backoff_ms", 150),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in which an attempt to connect must have got through
    ("grpc.keepalive_time_ms", 20_000),  # the server lets pings pass that are 5 seconds apart
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", 1024 * 1024),  # the server takes no more
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # it answers less
    ("grpc.service_config_disable_resolution", 1),  # ours holds, whatever the name service says
)


class Caseload:
    """The four services over one channel. Any number of threads may use it; it is meant to be kept, not made anew."""

    def __init__(self, channel: grpc.Channel, timeout: float, key: str | None) -> None:
        """Args: as of connect, which makes the channel."""
        self.channel: Final = channel
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._closed = Event()
        calls: Any = Calls(channel, timeout, metadata, self._closed)
        self.therapists: Final = TherapistServiceStub(calls)
        self.patients: Final = PatientServiceStub(calls)
        self.assignments: Final = AssignmentServiceStub(calls)
        self.changes: Final = ChangeServiceStub(calls)

    def follow(self, after_revision: str = "", filter: ChangeFilter | None = None) -> Answers:  # noqa: A002 - its name in the request
        """What WatchChanges sends, resumed where a restart, an instance that is gone or a slow reader cut it.

        It ends when this is closed. Keep the through_revision of what you have dealt with, to begin after it next time.
        Raises grpc.RpcError where resuming does not help, such as REVISION_PRUNED.
        """
        return follow(self.changes, WatchChangesRequest(after_revision=after_revision, filter=filter), self._closed)

    def close(self) -> None:
        """Ends calls under way with CANCELLED, and watches. Later calls of the four services raise ValueError."""
        self._closed.set()
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(  # noqa: PLR0913 - by name, each with a default
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
    """A connection to all instances behind a target. It connects by itself, at the first call and after each loss.

    Loopback is spoken to in plain text, unless a tls_... is given; anything else by TLS, unless allow_insecure is.

    Args:
        target: as gRPC takes it, "dns:///caseload.example.org:50051" or "ipv4:192.0.2.1:50051,192.0.2.2:50051".
        key: the caller's token, sent with each call.
        tls_ca: file of the authority that the server's certificate is of, PEM; without it those of the system.
        tls_cert: file of the certificate that is shown to the server, with its chain, PEM.
        tls_key: file of its key, PEM.
        allow_insecure: plain text beyond loopback. A key is refused with it.
        timeout: seconds that a call may take with all its retries, where the call itself gives none. Watches have none.
        interceptors: of the channel, for instance to trace calls.
        options: of the channel, which go before ours.

    Raises ValueError where these do not fit together, OSError where a file cannot be read.
    """
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise ValueError("key: must be visible ASCII characters")  # and not quoted, as grpc would
    credentials = _credentials(target, tls_ca, tls_cert, tls_key, allow_insecure=allow_insecure)
    if key and credentials is None and not _is_loopback(target):
        raise ValueError("key: would be sent in plain text; it needs TLS")
    settings = [*options, *CHANNEL_OPTIONS, ("grpc.service_config", service_config())]  # of two the first one counts
    if credentials is None:
        settings.append(("grpc.enable_http_proxy", 0))  # plain text and the key stay on the way that was named
        channel = grpc.insecure_channel(target, settings)
    else:
        channel = grpc.secure_channel(target, credentials, settings)
    return Caseload(grpc.intercept_channel(channel, *interceptors), timeout, key)


def service_config() -> str:
    """service_config.json, which is for all languages, and retries of Create: here each has a request_id."""
    config = json.loads(resources.files(__package__).joinpath("service_config.json").read_text())
    repeated, once, _ = config["methodConfig"]
    once["retryPolicy"] = repeated["retryPolicy"]
    return json.dumps(config)


def _credentials(
    target: str, ca: File | None, cert: File | None, key: File | None, *, allow_insecure: bool
) -> grpc.ChannelCredentials | None:
    if bool(cert) != bool(key):
        raise ValueError("tls_cert and tls_key: either needs the other")
    if not (ca or cert) and (allow_insecure or _is_loopback(target)):
        return None
    root, private, chain = (Path(file).read_bytes() if file else None for file in (ca, key, cert))
    return grpc.ssl_channel_credentials(root, private, chain)


def _is_loopback(target: str) -> bool:
    """Whether every address of a target is of this machine. What is not understood is not."""
    addresses = re.sub("^(dns:(///)?|ipv4:|ipv6:)", "", target).split(",")
    return all(map(_is_loopback_host, (re.sub(":[0-9]+$", "", address) for address in addresses)))


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
