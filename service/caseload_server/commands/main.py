"""The `caseload` command."""

import os
import sys
from typing import NoReturn

import click

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the C core writes to standard error by itself, with addresses

from caseload_server.commands.backup import backup, restore
from caseload_server.commands.check import check
from caseload_server.commands.early_signals import deliver_reload
from caseload_server.commands.export_import_verify import export_command, import_command, verify
from caseload_server.commands.keys import key_commands
from caseload_server.commands.log import log_commands
from caseload_server.commands.migrate import migrate_command
from caseload_server.commands.purge import purge
from caseload_server.commands.serve import serve
from caseload_server.commands.standard_streams import print_notice
from caseload_server.commands.variables import check_variables, injected
from caseload_server.config import SettingError

_NO_THREAD = "can't start new thread"
"""The text of Python's error."""


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="caseload-server", message="caseload %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """The system of record for therapists, patients and who treats whom."""
    if context.invoked_subcommand == serve.name:  # it logs an event, and waits for signals
        return
    deliver_reload()
    if names := injected(os.environ):
        print_notice(f"caseload: ignoring variables of a Kubernetes Service or a link: {', '.join(names)}")


for command in (
    serve,
    check,
    migrate_command,
    backup,
    restore,
    export_command,
    import_command,
    verify,
    purge,
    key_commands,
    log_commands,
):
    commands.add_command(command)


def _known_variables() -> set[str]:
    parameters = [parameter for command in commands.commands.values() for parameter in command.params]
    return {parameter.envvar for parameter in parameters if isinstance(parameter.envvar, str)}


def main() -> NoReturn:
    """Runs a command. When it cannot start, it prints one line on standard error and exits with code 2."""
    try:
        check_variables(os.environ, _known_variables())
        sys.exit(commands.main(standalone_mode=False) or 0)
    except SettingError as error:
        line = str(error)
    except click.BadParameter as error:
        name = error.param.opts[0] if error.param else "argument"
        problem = "is required" if isinstance(error, click.MissingParameter) else "is not valid"
        line = f"{name if name.startswith('-') else name.upper()}: {problem}"
    except click.NoSuchOption as error:
        line = f"{error.option_name}: is not a known option"
    except click.BadOptionUsage as error:
        line = f"{error.option_name}: needs a value, or takes no value"
    except click.UsageError:
        line = "unknown command or argument: see caseload --help"
    except click.Abort:
        line = "interrupted"
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        line = "ulimit -u: no thread can be started: raise this limit, or the limit of tasks or memory of its container"
    print_notice(f"caseload: {line}")
    sys.exit(2)
