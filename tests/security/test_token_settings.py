"""The settings for tokens of an identity provider."""

from pathlib import Path

import pytest
from caseload_server import config
from caseload_server.config import SettingError

from tests.process.command_runner import refusal as start_refused
from tests.security.server_fixture import serving

SETTINGS = {
    "no audience": ({"oidc-issuer": "https://a.test"}, "--oidc-issuer: needs --oidc-audience"),
    "no issuer": ({"oidc-audience": "a"}, "--oidc-audience: needs --oidc-issuer"),
    "no encryption": ({"oidc-issuer": "http://a.test", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "a query": ({"oidc-issuer": "https://a.test?b", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "a space": ({"oidc-issuer": "https://a.test/b c", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "no port": ({"oidc-issuer": "https://a.test:99999", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "half a host": ({"oidc-issuer": "https://[::1/", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
    "no URL": ({"oidc-issuer": "do-not-repeat-me", "oidc-audience": "a"}, "--oidc-issuer: must be an https URL"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("given", "text"), SETTINGS.values(), ids=SETTINGS)
def test_wrong_settings_are_rejected(tmp_path: Path, given: dict[str, str], text: str) -> None:
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    line = start_refused(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", *flags)
    assert line.startswith(text)
    assert "do-not-repeat-me" not in line


def test_a_server_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda _name: None)
    with (
        pytest.raises(SettingError, match=r"^--oidc-issuer: needs the extra caseload-server\[oidc\]"),
        serving(tmp_path, oidc_issuer="https://a.test", oidc_audience="a"),
    ):
        pass
