"""Values of variables that come from files, and variables that Kubernetes and Docker inject."""

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.process.command_runner import SECRET, SERVE, caseload, refusal, url
from tests.support.servers import Client, ServerProcess

AROUND = ["{}\n", "{}\r\n", " {}\t", "\ufeff{}\n", "{}\u200b", "\u00a0{}\u2028"]
"""What a file, an editor or a form leaves around a value."""
WITHIN = ["\n", "\r\n", "\x1b[31m", "\x7f", "\u0085", "\u2028", "\u200b"]
KUBERNETES = {
    "CASELOAD_SERVICE_HOST": "10.96.7.1",
    "CASELOAD_SERVICE_PORT": "50051",
    "CASELOAD_SERVICE_PORT_GRPC": "50051",
    "CASELOAD_PORT": "tcp://10.96.7.1:50051",
    "CASELOAD_PORT_50051_TCP": "tcp://10.96.7.1:50051",
    "CASELOAD_PORT_50051_TCP_PROTO": "tcp",
    "CASELOAD_PORT_50051_TCP_PORT": "50051",
    "CASELOAD_PORT_50051_TCP_ADDR": "10.96.7.1",
}
IPV6 = {
    "CASELOAD_DB_SERVICE_HOST": "fd00:10:96::1",
    "CASELOAD_DB_SERVICE_PORT": "5432",
    "CASELOAD_DB_PORT": "tcp://[fd00:10:96::1]:5432",
    "CASELOAD_DB_PORT_5432_TCP_ADDR": "fd00:10:96::1",
}
LINK = {
    "CASELOAD_NAME": "/web/caseload",
    "CASELOAD_ENV_LANG": "C.UTF-8",
    "CASELOAD_ENV_PASSWORD": SECRET,
    "CASELOAD_PORT": "tcp://172.17.0.5:50051",
    "CASELOAD_PORT_50051_TCP_START": "tcp://172.17.0.5:50051",
    "CASELOAD_PORT_50051_TCP_PORT_END": "50052",
}
NOT_INJECTED = {
    "CASELOAD_PORT": "8080",
    "CASELOAD_PORT_50051_TCP": "50051",
    "CASELOAD_PORT_50051_TCP_PROTO": "http",
    "CASELOAD_PORTS": "tcp://10.96.7.1:50051",
    "CASELOAD_SERVICE_HOST": "db.example.org",
    "CASELOAD_SERVICE_PORT": "grpc",
    "CASELOAD_SERVICE": "10.96.7.1",
    "CASELOAD_NAME": "caseload",
    "CASELOAD_ENV_LANG": "C.UTF-8",
    "CASELOAD_KEYS_FILE_NAME": "/run/keys",
}


@pytest.mark.parametrize("form", AROUND, ids=ascii)
def test_white_space_around_the_value_of_a_variable_is_ignored(tmp_path: Path, form: str) -> None:
    variable = {"CASELOAD_DATABASE": form.format("sqlite:///caseload.db")}
    assert caseload(tmp_path, "migrate", **variable).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["caseload.db"]
    assert caseload(tmp_path, "verify", "--database", variable["CASELOAD_DATABASE"]).returncode == 0


def test_every_setting_of_the_server_may_end_with_a_newline(tmp_path: Path) -> None:
    (tmp_path / "keys").touch(mode=0o600)
    settings = {
        "ADDRESS": "127.0.0.1:0",
        "DATABASE": url(tmp_path / "caseload.db"),
        "WORKERS": "1",
        "DRAIN_SECONDS": "0",
        "KEYS_FILE": f"{tmp_path}/keys",
        "LOG_LEVEL": "info",
        "ACCESS_LOG": f"{tmp_path}/access.log",
        "ALLOW_INSECURE": "true",
        "TLS_CERT": "",
        "OIDC_ISSUER": " ",
    }
    variables = {f"CASELOAD_{name}": f"{value}\n" for name, value in settings.items()}
    with ServerProcess(f"{url(tmp_path / 'caseload.db')}\n", access_log=None, environment=variables) as server:
        _, log = server.stop()
    started = next(event for event in map(json.loads, log.splitlines()) if event["event"] == "started")
    found = started["configuration"]
    assert (found["database"], found["log_level"], found["allow_insecure"]) == (settings["DATABASE"], "info", True)
    assert (found["keys_file"], found["oidc_issuer"]) == ("keys", None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["access.log", "caseload.db", "keys"]


@pytest.mark.parametrize("mark", WITHIN, ids=ascii)
def test_a_control_character_within_a_value_is_rejected_by_the_name_of_the_setting(tmp_path: Path, mark: str) -> None:
    value = f"sqlite:///{SECRET}{mark}.db"
    by_variable = refusal(tmp_path, *SERVE, CASELOAD_DATABASE=value)
    by_flag = refusal(tmp_path, "migrate", "--database", value)
    assert by_variable.startswith("CASELOAD_DATABASE: contains a line end, or another control")
    assert by_flag.startswith("--database: contains a line end, or another control")
    assert SECRET not in by_variable + by_flag


@pytest.mark.parametrize("variables", [KUBERNETES, IPV6, LINK], ids=["kubernetes", "another service", "link"])
def test_injected_variables_are_ignored_with_one_line(tmp_path: Path, variables: dict[str, str]) -> None:
    for arguments in (("migrate",), ("verify",), ("key", "create", "--name", "billing", "--permission", "read")):
        ended = caseload(tmp_path, *arguments, CASELOAD_DATABASE="sqlite:///caseload.db", **variables)
        assert ended.returncode == 0, ended.stderr
        [line] = [line for line in ended.stderr.splitlines() if "CASELOAD_" in line]
        assert line.endswith(", ".join(sorted(variables)))
        assert SECRET not in ended.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_server_logs_injected_variables_once(tmp_path: Path, workers: str) -> None:
    database = url(tmp_path / "caseload.db")
    with ServerProcess(database, "--workers", workers, environment=KUBERNETES) as server:
        client = Client(server.address)
        client.close()
        _, log = server.stop()
    logged = [event for event in map(json.loads, log.splitlines()) if "injected" in event["event"]]
    assert [event["variables"] for event in logged] == [sorted(KUBERNETES)]


@pytest.mark.parametrize("name", NOT_INJECTED)
def test_a_variable_that_only_resembles_an_injected_one_is_rejected(tmp_path: Path, name: str) -> None:
    for arguments in (SERVE, ("key", "create", "--name", "billing", "--permission", "read")):
        line = refusal(tmp_path, *arguments, **{name: NOT_INJECTED[name]})
        assert line == f"{name}: is not a known setting"


def test_a_password_of_the_database_may_end_with_a_newline(tmp_path: Path, postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    environment = {"PGPASSWORD": f"{unquote(parts.password or 'any')}\n", "PGUSER": f"{parts.username}\r\n"}
    host = parts.netloc.rpartition("@")[2]
    without_user = parts._replace(netloc=host).geturl()
    ended = caseload(tmp_path, "migrate", CASELOAD_DATABASE=f"{without_user}\n", **environment)
    assert ended.returncode == 0, ended.stderr


def test_a_newline_that_was_encoded_into_a_password_is_rejected_by_name(tmp_path: Path, postgres_url: str) -> None:
    line = refusal(tmp_path, *SERVE, CASELOAD_DATABASE=f"{postgres_url}?password={SECRET}%0A")
    assert line == "--database: the parameter password contains a line end or another control character"


def test_a_path_may_end_with_a_newline_too(tmp_path: Path) -> None:
    """An argument from a block of YAML text ends with one."""
    database = ("--database", "sqlite:///caseload.db")
    assert caseload(tmp_path, "migrate", *database).returncode == 0
    assert caseload(tmp_path, "backup", "copy.db\n", *database).returncode == 0
    assert caseload(tmp_path, "restore", "copy.db\n", "--database", "sqlite:///restored.db").returncode == 0
    assert {file.name for file in tmp_path.iterdir()} == {"caseload.db", "copy.db", "restored.db"}
    line = refusal(tmp_path, "export", "a\nb", *database)
    assert line == "FILE: contains a line end, or another control or invisible character"
