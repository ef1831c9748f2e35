"""`caseload key`: API keys of callers."""

import click

from caseload_server.config import SettingError
from caseload_server.security import api_keys
from caseload_server.security.principal import PERMISSIONS


@click.group(name="key")
def key_commands() -> None:
    """Keys of callers."""


@key_commands.command()
@click.option("--name", required=True, help="The caller's name.")
@click.option("--permission", type=click.Choice(PERMISSIONS), multiple=True, required=True, help="May be repeated.")
def create(name: str, permission: tuple[str, ...]) -> None:
    """Make a key: the first line printed is the token, the second the line for the keys file."""
    if not api_keys.is_name(name):
        text = 'must be 1 to 200 visible ASCII characters, without " and \\, not # or cli: at the start'
        raise SettingError("--name", text)
    click.echo("\n".join(api_keys.create(name, permission)))
