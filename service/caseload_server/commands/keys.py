"""`caseload key`: manages the API keys of callers."""

from datetime import UTC, datetime
from pathlib import Path

import click

from caseload_server.clock import now_us
from caseload_server.commands.options import file_argument
from caseload_server.commands.standard_streams import print_line
from caseload_server.config import SettingError
from caseload_server.security import api_keys, keys_file
from caseload_server.security.principal import PERMISSIONS


@click.group(name="key")
def key_commands() -> None:
    """Manage API keys."""


@key_commands.command()
@click.option("--name", required=True, help="Name of the caller.")
@click.option(
    "--permission",
    type=click.Choice(PERMISSIONS),
    multiple=True,
    required=True,
    help="Can be repeated.",
)
@click.option("--expires", metavar="TIME", help="When the key expires, such as 2027-01-31T00:00:00Z. Default: never.")
def create(name: str, permission: tuple[str, ...], expires: str | None) -> None:
    """Create a key. Prints the token, and then the line for the keys file."""
    if fault := api_keys.name_fault(name):
        raise SettingError("--name", fault)
    suffix = f" expires:{_expiry(expires)}" if expires is not None else ""
    token, line = api_keys.generate_key(name, permission)
    print_line(f"{token}\n{line}{suffix}")


def _expiry(text: str) -> str:
    """Returns the time in the form of the keys file. Raises SettingError."""
    try:
        seconds = keys_file.parse_expiry(text)
        in_utc = datetime.fromtimestamp(seconds, UTC)
    except ValueError:  # also for a year that only another time zone has
        raise SettingError("--expires", "must be a time with a time zone, such as 2027-01-31T00:00:00Z") from None
    if seconds * 1_000_000 <= now_us():
        raise SettingError("--expires", "must be in the future")
    return in_utc.isoformat(timespec="seconds").replace("+00:00", "Z")


@key_commands.command()
@file_argument
def check(file: Path) -> int:
    """Check a keys file. Prints each fault and each expired line. Exits with code 1 if there is a fault, else 0."""
    found, fault_of_file = keys_file.check_keys_file("FILE", file)
    faults = [*([f"the file {fault_of_file}"] if fault_of_file else []), *found.faults]
    for line in (*faults, *(f"line {number}: has expired" for number in found.expired)):
        print_line(line)
    if faults:
        return 1
    count = len(found.keys.permissions())
    print_line(f"ok: {count} caller{'' if count == 1 else 's'}")
    return 0
