"""The target, credentials and options of the channel. Both clients share this module."""

import ipaddress
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import grpc

Options = Sequence[tuple[str, Any]]
File = str | Path

CHANNEL_OPTIONS: Final[Options] = (
    ("grpc.initial_reconnect_backoff_ms", 50),  # the default is 1 s, longer than an instance takes to restart
    ("grpc.max_reconnect_backoff_ms", 150),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # the time limit of an attempt to connect
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # the default is 30 s: pods return with another address
    ("grpc.keepalive_time_ms", 20_000),  # the server allows a ping every 5 seconds
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", 1024 * 1024),  # the server accepts no larger request
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # its responses are smaller
    # Channels that share a connection can crash the process when they reconnect at the same time. In the health checks
    # of gRPC's C core (1.85.3 and older), HealthWatcher::SetSubchannel publishes a HealthProducer before it starts it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),  # use our service config, whatever the name service has
)


class ChannelSettings(NamedTuple):
    """The credentials and options of a channel."""

    credentials: grpc.ChannelCredentials | None
    """None for plain text."""
    options: list[tuple[str, Any]]


class TlsFiles(NamedTuple):
    """PEM files, as connect() takes them."""

    ca: File | None
    cert: File | None
    key: File | None


def channel_settings(
    target: str, tls: TlsFiles, options: Options, *, has_key: bool, allow_insecure: bool
) -> ChannelSettings:
    """Returns the settings of a channel to a target. The arguments and errors are those of connect()."""
    credentials = _credentials(target, tls, allow_insecure=allow_insecure)
    settings = [*options, *CHANNEL_OPTIONS, ("grpc.service_config", service_config())]  # of duplicates the first counts
    if credentials is None and has_key and not _is_loopback(target):
        raise ValueError("key: would be sent in plain text; it needs TLS")
    # A proxy that the environment names would read plain text and the key, and it has another loopback interface.
    if credentials is None or _is_on_this_machine(target):
        settings.append(("grpc.enable_http_proxy", 0))
    return ChannelSettings(credentials, settings)


def service_config() -> str:
    """Returns the gRPC service config as JSON.

    It is service_config.json, which all languages use, with retries of creates added. The client sends a request_id
    with each create, so these retries are safe.
    """
    config = json.loads(resources.files("caseload.client").joinpath("service_config.json").read_text())
    repeatable, creates, _ = config["methodConfig"]
    creates["retryPolicy"] = repeatable["retryPolicy"]
    return json.dumps(config)


def _credentials(target: str, tls: TlsFiles, *, allow_insecure: bool) -> grpc.ChannelCredentials | None:
    if bool(tls.cert) != bool(tls.key):
        raise ValueError("tls_cert and tls_key: give both or neither")
    if not (tls.ca or tls.cert) and (allow_insecure or _is_loopback(target)):
        return None
    root, private, chain = (Path(file).read_bytes() if file else None for file in (tls.ca, tls.key, tls.cert))
    return grpc.ssl_channel_credentials(root, private, chain)


def _is_on_this_machine(target: str) -> bool:
    """Returns whether a target is loopback or a Unix socket: https://github.com/grpc/grpc/blob/master/doc/naming.md."""
    return target.startswith(("unix:", "unix-abstract:")) or _is_loopback(target)


def _is_loopback(target: str) -> bool:
    """Returns whether every address of a target is a loopback address; False for a target of another form."""
    addresses = re.sub("^(dns:(///)?|ipv4:|ipv6:)", "", unquote(target)).split(",")
    return all(map(_is_loopback_host, (re.sub(":[0-9]+$", "", address) for address in addresses)))


def _is_loopback_host(host: str) -> bool:
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
