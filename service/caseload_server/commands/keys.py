"""`caseload key`: manages the API keys of callers."""

import click

from caseload_server.config import SettingError
from caseload_server.security import api_keys
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
def create(name: str, permission: tuple[str, ...]) -> None:
    """Create a key. Prints the token, and then the line for the keys file."""
    if not api_keys.is_valid_name(name):
        text = 'must be 1 to 200 visible ASCII characters without " and \\, and must not begin with # or cli:'
        raise SettingError("--name", text)
    click.echo("\n".join(api_keys.generate_key(name, permission)))
