"""The `caseload` command."""

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import apsw
import click
import structlog

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the C core writes to stderr by itself, and repeats addresses

from service import config as settings
from service import keys
from service.callers import PERMISSIONS
from service.config import Config, SettingError
from service.errors import DomainError
from service.store.migrate import SchemaError, migrate, pending

_PREFIX = "CASELOAD_"
_TEST_PREFIX = "CASELOAD_TEST_"
_DAY_SECONDS = 86_400


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


class _File(click.ParamType[Path]):
    """The name of a file."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if str(value).endswith("/"):
            self.fail("must be a file", param, ctx)
        return Path(value)


def _option(flag: str, **attributes: Any) -> Callable[[Any], Any]:
    """A flag that is also a variable: --drain-seconds is CASELOAD_DRAIN_SECONDS."""
    variable = _PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, show_default=True, **attributes)


_database = _option("--database", metavar="URL", default=Config.database, help="sqlite:///PATH of the database file.")


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="caseload-server", message="caseload %(version)s")
def commands() -> None:
    """The system of record for therapists, patients and who treats whom."""


@commands.command()
@_option("--address", metavar="HOST:PORT", default=Config.address, help="Where to listen; port 0 takes a free one.")
@_database
@_option("--max-watches", type=click.IntRange(1), default=Config.max_watches, help="Watches open at once.")
@_option("--drain-seconds", type=_Seconds(), default=Config.drain_seconds, help="Answer on while draining.")
@_option("--grace-seconds", type=_Seconds(), default=Config.grace_seconds, help="Wait for calls under way.")
@_option("--keys-file", type=_File(), help="The callers, with their permissions and the hashes of their keys.")
@_option("--tls-cert", type=_File(), help="Certificate chain to show, PEM.")
@_option("--tls-key", type=_File(), help="Its key, PEM.")
@_option("--tls-client-ca", type=_File(), help="Ask for client certificates of this authority, PEM.")
@_option("--access-log", type=_File(), help="File for a line a call, instead of standard error.")
@_option("--allow-insecure", is_flag=True, help="Listen beyond loopback without encryption and authentication.")
def serve(**values: Any) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    # The signals are waited for and not handled: a handler that takes a lock can deadlock when two arrive together.
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    os.umask(0o077)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # connections are files
    _log_to_stderr()
    config = Config(**values)
    config.check()  # before grpc is loaded, which takes longer than the check
    from service.server import build_server

    server = build_server(config)
    server.start()
    log = structlog.get_logger()
    if config.allow_insecure:
        known, encrypted = config.keys_file is not None, config.tls_cert is not None
        log.warning("anyone is let in", setting="--allow-insecure", callers_are_known=known, is_encrypted=encrypted)
    log.info("started", address=server.address)
    click.echo(f"caseload: serving on {server.address}")
    signal.sigwait(stopping)
    log.info("stopping")
    server.stop()
    log.info("stopped")


@commands.command(name="migrate")
@_database
@click.option("--dry-run", is_flag=True, help="List what would run, and change nothing.")
def migrate_command(database: str, dry_run: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Bring the database's schema up to date."""
    os.umask(0o077)
    path = settings.sqlite_path(database)
    try:
        steps = pending(path) if dry_run else migrate(path)
    except (SchemaError, apsw.Error) as error:
        from service.server import unusable

        raise unusable(error) from None
    for step in steps:
        click.echo(step.name)
    if not steps:
        click.echo("up to date", err=True)


_file = click.argument("file", type=click.Path(path_type=Path))


@commands.command()
@_file
@_database
def backup(file: Path, database: str) -> None:
    """Copy the database into FILE, while it is served."""
    from service.store import backups

    _copy(backups.backup, ("--database", settings.sqlite_path(database)), ("FILE", file))


@commands.command()
@_file
@_database
def restore(file: Path, database: str) -> None:
    """Make a new database of the copy in FILE."""
    from service.store import backups

    _copy(backups.restore, ("FILE", file), ("--database", settings.sqlite_path(database)))


def _copy(copy: Callable[[Path, Path], int], source: tuple[str, Path], target: tuple[str, Path]) -> None:
    """Runs a copy; source and target are each a setting and its file."""
    os.umask(0o077)
    if not source[1].is_file():
        raise SettingError(source[0], "there is no such file")
    try:
        revision = copy(source[1], target[1])
    except FileExistsError:
        raise SettingError(target[0], "the file, or a -wal file of an earlier one, exists already") from None
    except (SchemaError, apsw.NotADBError) as error:
        text = str(error) if isinstance(error, SchemaError) else "the file is not a SQLite database"
        raise SettingError(source[0], text) from None
    except (apsw.Error, OSError):
        raise SettingError(target[0], "the copy could not be written") from None
    click.echo(f"revision {revision}")


@commands.command()
@_database
@click.option("--changes-before", metavar="TIME", required=True, help="A time (RFC 3339), or an age such as 30d.")
def purge(database: str, changes_before: str) -> None:
    """Erase the change log up to a time, for good."""
    from service.server import clock, open_store

    before_us = settings.moment("--changes-before", changes_before, clock())
    path = settings.sqlite_path(database)
    if not path.exists():
        raise SettingError("--database", "there is no such file")
    store = open_store(path)
    try:
        count = store.purge_changes(min(before_us, clock()))
    except DomainError as error:
        raise SettingError("--database", error.message) from None
    finally:
        store.close()
    click.echo(f"{count} change sets purged")


@commands.group(name="key")
def key_commands() -> None:
    """Keys of callers."""


@key_commands.command()
@click.option("--name", required=True, help="The caller's name.")
@click.option("--permission", type=click.Choice(PERMISSIONS), multiple=True, required=True, help="May be repeated.")
def create(name: str, permission: tuple[str, ...]) -> None:
    """Make a key: the first line printed is the token, the second the line for the keys file."""
    if not keys.is_name(name):
        raise SettingError("--name", 'must be 1 to 200 visible ASCII characters, without " and \\, not # at the start')
    click.echo("\n".join(keys.create(name, permission)))


def _log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("grpc").addHandler(logging.NullHandler())  # its tracebacks quote what a handler raised


def _refuse_unknown_variables() -> None:
    known = {
        parameter.envvar for command in commands.commands.values() for parameter in command.params if parameter.envvar
    }
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and not name.startswith(_TEST_PREFIX) and name not in known:
            raise SettingError(name, "there is no such setting")


def main() -> NoReturn:
    """Runs a command: exit code 0, or 2 and one line on stderr where it cannot start."""
    try:
        _refuse_unknown_variables()
        sys.exit(commands.main(standalone_mode=False) or 0)
    except SettingError as error:
        line = str(error)
    except click.BadParameter as error:
        name = error.param.opts[0] if error.param else "argument"
        fault = "is required" if isinstance(error, click.MissingParameter) else "is not valid"
        line = f"{name if name.startswith('-') else name.upper()}: {fault}"
    except click.NoSuchOption as error:
        line = f"{error.option_name}: there is no such option"
    except click.BadOptionUsage as error:
        line = f"{error.option_name}: needs a value, or takes none"
    except click.UsageError:
        line = "cannot tell what to do: see caseload --help"
    except click.Abort:
        line = "interrupted"
    click.echo(f"caseload: {line}", err=True)
    sys.exit(2)
