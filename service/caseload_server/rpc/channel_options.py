"""The options of the gRPC server: its limits on connections, messages and pings."""

from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.open_files import max_connections


def channel_options(config: Config) -> list[tuple[str, int]]:
    """Returns the options of the gRPC C core, which enforces the limits on connections and messages.

    https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
    """
    return [
        ("grpc.so_reuseport", int(config.workers > 1)),  # otherwise a second server could share the port unnoticed
        ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES),  # between the two, grpc would reject at random
        # One connection may carry every watch that can be open, and other calls beside them.
        ("grpc.max_concurrent_streams", config.max_watches + limits.MAX_CALLS_PER_CONNECTION),
        # Bytes that a caller may send before the server asks for the message. The probe would raise it to megabytes.
        ("grpc.http2.lookahead_bytes", limits.LOOKAHEAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        # This protection also counts ended calls until they are cleaned up, so it would reject a caller that keeps to
        # the limit. max_pending_requests below limits the calls that callers cancel as soon as they begin.
        ("grpc.http.overload_protection", 0),
        # When the process has no time to accept calls to a method, the library rejects what exceeds a burst.
        ("grpc.server.max_pending_requests", config.max_watches + 1000),
        ("grpc.server.max_pending_requests_hard_limit", config.max_watches + 1000),
        ("grpc.max_allowed_incoming_connections", max_connections(config)),
        ("grpc.server_handshake_timeout_ms", limits.HANDSHAKE_TIMEOUT_MS),
        ("grpc.http2.settings_timeout", limits.HANDSHAKE_TIMEOUT_MS),  # until then the metadata limit does not apply
        ("grpc.max_connection_idle_ms", limits.MAX_CONNECTION_IDLE_MS),
        ("grpc.keepalive_time_ms", limits.KEEPALIVE_INTERVAL_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
        *_age_options(config.connection_age_seconds()),
    ]


def _age_options(age_seconds: float) -> list[tuple[str, int]]:
    """Returns the options that close old connections. The library varies the age by 10 %, to spread the reconnects.

    A watch can begin just before its connection reaches its age, and may then last as long again.
    """
    if not age_seconds:
        return []
    grace_seconds = age_seconds + limits.CONNECTION_AGE_GRACE_SECONDS
    return [
        ("grpc.max_connection_age_ms", int(age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(grace_seconds * 1000)),
    ]
