"""The flags that several commands have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from caseload_server.config import Config, SettingError, has_password

PREFIX: Final = "CASELOAD_"
STANDARD: Final = Path("-")
"""The standard stream, where a command takes it for a file."""


def option(flag: str, **attributes: Any) -> Callable[[Any], Any]:
    """A flag that is also a variable: --drain-seconds is CASELOAD_DRAIN_SECONDS."""
    variable = PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, show_default=True, **attributes)


def _without_password(context: click.Context, parameter: click.Parameter, url: str) -> str:
    """A secret is never a flag: every user of the machine can read it in the list of processes."""
    given = context.get_parameter_source(parameter.name or "")
    if given is ParameterSource.COMMANDLINE and has_password(url):
        raise SettingError(
            "--database", "must not hold a password: use CASELOAD_DATABASE, PGPASSFILE or a service file"
        )
    return url


database_option = option(
    "--database",
    metavar="URL",
    default=Config.database,
    callback=_without_password,
    help="sqlite:///PATH of the database file, or postgresql://...",
)
file_argument = click.argument("file", type=click.Path(path_type=Path))
