"""`caseload serve`: runs the server."""

import gc
import math
import os
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click
import structlog

from caseload_server.commands.options import FilePath, database_option, option
from caseload_server.commands.signals import block_stop_signals, wait_for_stop
from caseload_server.commands.variables import bypass_proxies, injected
from caseload_server.config import Config
from caseload_server.memory_arenas import limit_arenas
from caseload_server.observability import logs
from caseload_server.open_files import max_connections, raise_limit
from caseload_server.supervisor import PARENT_DIED, Supervisor, WorkerSpec

_DAY_SECONDS = 86_400
_MAX_WORKERS = 1024


class _Seconds(click.ParamType[float]):
    """A duration in seconds, of at most a day."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= _DAY_SECONDS:  # false for NaN too
            self.fail("must be a number of seconds from 0 to 86400", param, ctx)
        return seconds


class _Share(click.FloatRange):
    """A part of a whole, from 0.01 to 1."""

    def __init__(self) -> None:
        super().__init__(0.01, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        share: float = super().convert(value, param, ctx)
        if math.isnan(share):  # no comparison rejects it
            self.fail("must be a number from 0.01 to 1", param, ctx)
        return share


class _Workers(click.ParamType[int]):
    """A number of worker processes, or auto for one per core."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "auto":
            return len(os.sched_getaffinity(0))
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= _MAX_WORKERS):
            self.fail("must be a number from 1 to 1024, or auto", param, ctx)
        return int(text)


@click.command()
@option("--address", metavar="HOST:PORT", default=Config.address, help="Address to listen on. Port 0 picks a free one.")
@database_option
@option("--workers", type=_Workers(), default=Config.workers, help="Number of server processes; auto is one per core.")
@option(
    "--pool-size",
    type=click.IntRange(1),
    default=Config.pool_size,
    help="PostgreSQL connections for reads, and the same number for writes.",
)
@option("--max-watches", type=click.IntRange(1), default=Config.max_watches, help="Maximum number of open watches.")
@option(
    "--max-caller-share",
    type=_Share(),
    default=Config.max_caller_share,
    help="Largest part of threads, queues, watches and open calls for one authenticated caller.",
)
@option(
    "--max-connection-age-seconds",
    type=_Seconds(),
    help="How long callers may keep a connection; 0 is no limit. Default: 300, or 0 on loopback.",
)
@option(
    "--drain-seconds",
    type=_Seconds(),
    default=Config.drain_seconds,
    help="How long to accept calls after a stop.",
)
@option(
    "--grace-seconds",
    type=_Seconds(),
    default=Config.grace_seconds,
    help="How long to wait for calls after that.",
)
@option("--keys-file", type=FilePath(), help="Callers, their permissions and the hashes of their keys.")
@option("--tls-cert", type=FilePath(), help="Certificate chain of the server, PEM.")
@option("--tls-key", type=FilePath(), help="Private key of --tls-cert, PEM.")
@option("--tls-client-ca", type=FilePath(), help="Require client certificates from this authority, PEM.")
@option("--oidc-issuer", metavar="URL", help="Accept tokens of this identity provider, named as in their claim iss.")
@option("--oidc-audience", metavar="TEXT", help="Audience that tokens must be for.")
@option(
    "--oidc-permissions-claim",
    metavar="NAME",
    default=Config.oidc_permissions_claim,
    help="Claim of a token with the caller's permissions.",
)
@option(
    "--oidc-name-claim",
    metavar="NAME",
    default=Config.oidc_name_claim,
    help="Claim of a token with the caller's name.",
)
@option("--access-log", type=FilePath(), help="File for the access log instead of standard error.")
@option("--access-log-required", is_flag=True, help="Reject calls while the access log cannot be written.")
@option("--log-level", type=click.Choice(logs.LEVELS), default=Config.log_level, help="Lowest level to log.")
@option("--metrics-address", metavar="HOST:PORT", help="Address to serve /metrics on. Port 0 picks a free port.")
@option("--behind-proxy", metavar="ADDRESS,...", help="Proxies or their networks, whose x-forwarded-for is trusted.")
@option("--allow-insecure", is_flag=True, help="Allow other addresses than loopback without TLS or authentication.")
def serve(**values: Any) -> int:
    """Run the server until SIGTERM or Ctrl-C."""
    block_stop_signals()
    os.umask(0o077)
    raise_limit()
    limit_arenas()
    bypass_proxies(os.environ)
    config = Config(**values)
    logs.configure(config.log_level)
    config.check()  # before grpc is imported, which takes longer than the check
    limited = replace(config, max_connections=max_connections(config))
    fewer_connections, config = limited != config, limited
    if spec := WorkerSpec.from_environment():
        config = spec.apply(config)
    elif config.workers > 1:
        supervisor = Supervisor(config, _print_ready)
        _log_injected()
        return supervisor.run(wait_for_stop)
    from caseload_server.rpc.server import build_server

    server = build_server(config)
    server.start()
    gc.freeze()  # excludes the objects of the startup from garbage collection, which saves some percent of each call
    log = structlog.get_logger()
    if not spec:
        _log_injected()
    if fewer_connections:
        log.warning("connections limited by open files", max_connections=config.max_connections, setting="ulimit -n")
    if config.allow_insecure:
        authenticated, encrypted = config.is_authenticated(), config.tls_cert is not None
        log.warning(
            "insecure listener allowed", setting="--allow-insecure", authenticated=authenticated, encrypted=encrypted
        )
    addresses = {"address": server.address, "metrics_address": server.metrics_address}
    log.info("started", **addresses, traces=server.is_traced, **logs.startup_fields(config))
    _print_ready(server.address)
    # In a thread of its own: the disk of a file may hang, and the next signal may be one to stop.
    wait_for_stop(lambda: threading.Thread(target=server.reload, name="reload", daemon=True).start())
    log.info("stopping")
    all_ended = server.stop(drain=not PARENT_DIED.is_set())
    log.info("stopped")
    if not all_ended:
        os._exit(0)  # a normal exit would wait for the threads of streams
    return 0


def _log_injected() -> None:
    log = structlog.get_logger()
    if names := injected(os.environ):
        log.info("injected variables ignored", variables=names)


def _print_ready(address: str) -> None:
    if sys.stdout:
        # The server runs even if standard output has no reader. A plain write leaves no buffered data for the exit.
        with suppress(OSError):
            os.write(sys.stdout.fileno(), f"caseload: serving on {address}\n".encode())
