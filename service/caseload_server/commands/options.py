"""Flags and arguments that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from caseload_server.commands.variables import PREFIX
from caseload_server.config import Config, SettingError, clean_value, has_password

STANDARD: Final = Path("-")
"""As FILE, the standard input or output."""


class FilePath(click.ParamType[Path]):
    """The path of a file."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if str(value).endswith("/"):
            self.fail("must be a file", param, ctx)
        return Path(value)


class Setting(click.Option):
    """A flag whose value is cleaned of white space around it, wherever it comes from."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Raises SettingError for a value with control characters."""
        return super().type_cast_value(ctx, clean_value(self.opts[0], value) if isinstance(value, str) else value)


def option(flag: str, **attributes: Any) -> Callable[[Any], Any]:
    """Defines a flag with an environment variable: --drain-seconds is CASELOAD_DRAIN_SECONDS."""
    variable = PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, cls=Setting, envvar=variable, show_envvar=True, show_default=True, **attributes)


def _refuse_password(context: click.Context, parameter: click.Parameter, url: str) -> str:
    """Rejects a password in the flag: every user of the machine can read it in the process list."""
    source = context.get_parameter_source(parameter.name or "")
    if source is ParameterSource.COMMANDLINE and has_password(url):
        raise SettingError(
            "--database", "must not contain a password: use CASELOAD_DATABASE, PGPASSFILE or a service file"
        )
    return url


database_option = option(
    "--database",
    metavar="URL",
    default=Config.database,
    callback=_refuse_password,
    help="Database URL: sqlite:///PATH or postgresql://...",
)


def _check_file(context: click.Context, _parameter: click.Parameter, file: Path | None) -> Path | None:
    """Cleans a path as the value of a setting. Rejects a URL, and special names, which would name a file."""
    if file is None:
        return None
    if file == STANDARD and context.command.name not in ("export", "import"):
        raise SettingError("FILE", "must be a file: only export and import use standard output and input")
    file = Path(clean_value("FILE", str(file)))
    if re.match("(?i):|file:|[a-z0-9+]+:/", str(file)):
        raise SettingError("FILE", "must be the path of a file, not a URL or a special name of SQLite")
    return file


file_argument = click.argument("file", type=FilePath(), callback=_check_file)
