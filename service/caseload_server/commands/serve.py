"""`caseload serve`."""

import gc
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import structlog

from caseload_server.commands.options import database_option, option
from caseload_server.config import Config
from caseload_server.observability import logs
from caseload_server.supervisor import ORPHANED, Place, Supervisor

_DAY_SECONDS = 86_400
_MAX_WORKERS = 1024


class _Seconds(click.ParamType[float]):
    """A length of time that can be slept."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= _DAY_SECONDS:  # which NaN is not either
            self.fail("must be a number of seconds from 0 to 86400", param, ctx)
        return seconds


class _Workers(click.ParamType[int]):
    """A number of processes."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "auto":
            return len(os.sched_getaffinity(0))
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= _MAX_WORKERS):
            self.fail("must be a number from 1 to 1024, or auto", param, ctx)
        return int(text)


class _File(click.ParamType[Path]):
    """The name of a file."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if str(value).endswith("/"):
            self.fail("must be a file", param, ctx)
        return Path(value)


@click.command()
@option("--address", metavar="HOST:PORT", default=Config.address, help="Where to listen; port 0 takes a free one.")
@database_option
@option("--workers", type=_Workers(), default=Config.workers, help="Processes that serve; auto: one a core.")
@option(
    "--pool-size",
    type=click.IntRange(1),
    default=Config.pool_size,
    help="Connections to PostgreSQL, to read; as many write.",
)
@option("--max-watches", type=click.IntRange(1), default=Config.max_watches, help="Watches open at once.")
@option("--drain-seconds", type=_Seconds(), default=Config.drain_seconds, help="Answer on while draining.")
@option("--grace-seconds", type=_Seconds(), default=Config.grace_seconds, help="Wait for calls under way.")
@option("--keys-file", type=_File(), help="The callers, with their permissions and the hashes of their keys.")
@option("--tls-cert", type=_File(), help="Certificate chain to show, PEM.")
@option("--tls-key", type=_File(), help="Its key, PEM.")
@option("--tls-client-ca", type=_File(), help="Ask for client certificates of this authority, PEM.")
@option("--access-log", type=_File(), help="File for a line a call, instead of standard error.")
@option("--log-level", type=click.Choice(logs.LEVELS), default=Config.log_level, help="Log what is at least that bad.")
@option("--metrics-address", metavar="HOST:PORT", help="Where to serve metrics, at /metrics; port 0 takes a free one.")
@option("--allow-insecure", is_flag=True, help="Listen beyond loopback without encryption and authentication.")
def serve(**values: Any) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    # The signals are waited for and not handled: a handler that takes a lock can deadlock when two arrive together.
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    os.umask(0o077)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # connections are files
    config = Config(**values)
    logs.configure(config.log_level)
    config.check()  # before grpc is loaded, which takes longer than the check
    if place := Place.found():
        config = place.take(config)
        stopping.add(ORPHANED)
    elif config.workers > 1:
        return Supervisor(config, _say_ready).run(stopping)
    from caseload_server.rpc.server import build_server

    server = build_server(config)
    server.start()
    gc.freeze()  # what a start made stays: no collection need look at it again, which is some hundredths of each call
    log = structlog.get_logger()
    if config.allow_insecure:
        known, encrypted = config.keys_file is not None, config.tls_cert is not None
        log.warning("insecure is allowed", setting="--allow-insecure", callers_are_known=known, is_encrypted=encrypted)
    log.info("started", address=server.address, metrics_address=server.metrics_address, **logs.startup_fields(config))
    _say_ready(server.address)
    why = signal.sigwait(stopping)
    log.info("stopping")
    ended = server.stop(drain=why != ORPHANED)
    log.info("stopped")
    if not ended:
        os._exit(0)  # else Python would wait for the threads of streams
    return 0


def _say_ready(address: str) -> None:
    if sys.stdout:
        with suppress(OSError):  # it serves, also where nobody reads that; and nothing is left to be written at the end
            os.write(sys.stdout.fileno(), f"caseload: serving on {address}\n".encode())
