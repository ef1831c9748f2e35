"""Commands that leave a record in the access log: which user of the machine ran what, when, and how it ended."""

import json
import os
import pwd
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from caseload_server.commands.options import FilePath, Setting
from caseload_server.commands.signals import InterruptibleCommand
from caseload_server.config import SettingError, check_own_file
from caseload_server.observability import logs
from caseload_server.observability.log_file import LogFile, LogSink
from caseload_server.private_files import check_log_file
from caseload_server.write_faults import with_fault, write_fault

_SETTING: Final = "--access-log"


class AuditedCommand(click.Command):
    """Writes a line to the access log when the command begins, and one when it ends.

    The first line is written before the command does anything, so a kill -9 cannot lose it. Both have the command's
    arguments without secrets, and no data of patients.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        """Adds the option --access-log."""
        super().__init__(*arguments, **attributes)
        self.params.append(
            Setting(
                [_SETTING],
                type=FilePath(),
                metavar="FILE",
                envvar="CASELOAD_ACCESS_LOG",
                show_envvar=True,
                help="File for the record of this command instead of standard error.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        log, files = ctx.params.pop("access_log"), (ctx.params.get("file"), ctx.params.get("metrics_file"))
        if log:
            check_own_file(_SETTING, log, ctx.params["database"], *files)
        sink, started, outcome = _sink(log), time.monotonic(), "failed"
        fields = {"command": self.name, **_user(), "pid": os.getpid(), "arguments": _arguments(ctx.params)}
        try:
            _write(sink, "command_started", fields)
        except OSError as error:
            if isinstance(sink, LogFile):
                raise _unwritable(sink.path, error) from None
        try:
            result = super().invoke(ctx)
            outcome = _outcome(result or 0)
        except click.exceptions.Exit as early:
            outcome = _outcome(early.exit_code)
            raise
        except KeyboardInterrupt:
            outcome = "interrupted"
            raise
        finally:
            with suppress(OSError):  # the command has done its work
                seconds = round(time.monotonic() - started, 3)
                _write(sink, "command_ended", {**fields, "outcome": outcome, "seconds": seconds})
        return result


class InterruptibleAuditedCommand(AuditedCommand, InterruptibleCommand):
    """An audited command that cleans up when a signal interrupts it."""


def _outcome(exit_code: int) -> str:
    """Returns the outcome of a command that ended. An interrupted one exits with 128 plus the number of the signal."""
    if exit_code > 128:
        return "interrupted"
    return "failed" if exit_code else "ok"


def _sink(path: Path | None) -> LogSink:
    if path is None:
        return logs.ConsoleSink() if sys.stderr.isatty() else logs.STDERR
    check_log_file(_SETTING, path)
    try:
        return LogFile(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> SettingError:
    return SettingError(_SETTING, with_fault("cannot be written", write_fault(path, error)))


def _write(sink: LogSink, event: str, fields: dict[str, Any]) -> None:
    time_text = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sink.write(json.dumps({"event": event, "time": time_text, **fields}, separators=(",", ":")) + "\n")


def _user() -> dict[str, Any]:
    """Returns the user of the process, and the user who logged in, whom neither su nor sudo changes.

    https://man7.org/linux/man-pages/man5/proc_pid_loginuid.5.html
    """
    fields: dict[str, Any] = {"user": _name(os.getuid()), "uid": os.getuid()}
    with suppress(OSError, ValueError):
        login_uid = int(Path("/proc/self/loginuid").read_text())
        if login_uid != 2**32 - 1:  # no login, as for a service
            fields |= {"login_user": _name(login_uid), "login_uid": login_uid}
    return fields


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may know no names
        return ""


def _arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the command without secrets, and without those that have no value."""
    given = {name: value for name, value in parameters.items() if value not in (None, False)}
    given["database"] = logs.without_secrets(given["database"])
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
