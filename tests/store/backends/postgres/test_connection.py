"""Connections to PostgreSQL: their parameters, their session settings, and poolers between."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import psycopg
import pytest
import trustme
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.postgres.connection import (
    READS,
    WITHOUT_TIMEOUTS,
    WRITES,
    SessionRefused,
    SessionSettings,
    connect,
)
from caseload_server.store.backends.postgres.connection_parameters import complete_conninfo, effective_parameters
from caseload_server.store.backends.postgres.database import PostgresDatabase
from psycopg.conninfo import conninfo_to_dict

from tests.store.store_calls import make
from tests.support.postgres.cluster import QUICK, Cluster, Server
from tests.support.postgres.pgbouncer import pgbouncer
from tests.support.waiting import eventually

HOSTILE = {
    "client_encoding": "LATIN1",
    "client_min_messages": "error",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "jit": "on",
    "lock_timeout": "1ms",
    "row_security": "on",
    "standard_conforming_strings": "off",
    "statement_timeout": "1ms",
    "synchronous_commit": "off",
}
EXPECTED = {
    "client_encoding": "UTF8",
    "client_min_messages": "warning",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "0",
    "jit": "off",
    "lock_timeout": "3s",
    "row_security": "off",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "synchronous_commit": "on",
}
# Statements before the settings are set must survive the hostile ones.
SLOWER = {name: "300s" if value == "1ms" else value for name, value in HOSTILE.items()}


@pytest.fixture(autouse=True)
def patient() -> None:
    """Replaces the fixture of all tests of the store: here the timeouts are the real ones."""


@pytest.fixture
def role_url(postgres: Server, postgres_url: str) -> Iterator[str]:
    """The URL of an empty store, for a superuser of its own. Resets the settings of the database afterwards."""
    database = urlsplit(postgres_url).path.removeprefix("/")
    with postgres.role(postgres_url, "SUPERUSER") as url:
        yield url
    with postgres.connect(database) as admin:
        admin.execute(f"ALTER DATABASE {database} RESET ALL".encode())


def alter(url: str, what: str, settings: dict[str, str]) -> None:
    """Sets the defaults of the role or the database in a URL. Args: what, "ROLE" or "DATABASE"."""
    parts = urlsplit(url)
    name = parts.username if what == "ROLE" else parts.path.removeprefix("/")
    with psycopg.connect(url, autocommit=True) as admin:
        for setting, value in settings.items():
            admin.execute(f"ALTER {what} {name} SET {setting} = '{value}'".encode())


def with_options(url: str, options: str) -> str:
    return f"{url}?options={quote(options)}"


def shown(url: str, *names: str, settings: SessionSettings = WRITES) -> dict[str, str]:
    with closing(connect(url, settings)) as connection:
        return {name: connection.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in names}


@pytest.mark.parametrize("what", ["ROLE", "DATABASE"])
def test_settings_of_the_role_and_the_database_do_not_change_a_session(role_url: str, what: str) -> None:
    alter(role_url, what, SLOWER)
    assert shown(role_url, *EXPECTED) == EXPECTED


def test_options_of_the_url_do_not_change_what_correctness_rests_on(postgres_url: str) -> None:
    options = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in SLOWER.items())
    allowed = {"idle_in_transaction_session_timeout": "5min", "lock_timeout": "5min", "jit": "on"}
    assert shown(with_options(postgres_url, options), *EXPECTED) == EXPECTED | allowed


@pytest.mark.parametrize(
    ("configured", "kept"),
    [("remote_apply", "remote_apply"), ("on", "on"), ("remote_write", "on"), ("local", "on"), ("off", "on")],
)
def test_only_a_weaker_synchronous_commit_is_raised(role_url: str, configured: str, kept: str) -> None:
    name = "synchronous_commit"
    assert shown(with_options(role_url, f"-c {name}={configured}"), name) == {name: kept}
    alter(role_url, "ROLE", {name: configured})
    assert shown(role_url, name) == {name: kept}


def test_a_session_reads_with_a_timeout_and_exports_without_one(postgres_url: str) -> None:
    timeouts = ("statement_timeout", "idle_in_transaction_session_timeout")
    assert shown(postgres_url, *timeouts, settings=READS) == dict(zip(timeouts, ("10s", "10s"), strict=True))
    impatient = with_options(postgres_url, "-c statement_timeout=1s --idle-in-transaction-session-timeout=1s")
    assert shown(impatient, *timeouts, settings=READS) == dict.fromkeys(timeouts, "1s")
    assert shown(impatient, *timeouts, settings=WITHOUT_TIMEOUTS) == dict.fromkeys(timeouts, "0")


def test_a_session_without_triggers_is_refused(role_url: str) -> None:
    alter(role_url, "ROLE", {"session_replication_role": "replica"})
    with pytest.raises(SessionRefused, match="session_replication_role = origin"):
        connect(role_url)


FORGETFUL = """
CREATE SCHEMA forgetful;
CREATE FUNCTION forgetful.set_config(name TEXT, value TEXT, is_local BOOLEAN) RETURNS TEXT RETURN value"""


def test_a_setting_that_does_not_last_is_refused(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as admin:
        admin.execute(FORGETFUL)
    with pytest.raises(SessionRefused, match="does not keep the setting"):
        connect(with_options(postgres_url, "-c search_path=forgetful,pg_catalog"))


class Operator:
    """The settings of an operator outside the URL."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
        self._patch, self._file, self._url = patch, folder / "services", urlsplit(url)
        for name in ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSSLROOTCERT", "PGOPTIONS"):
            patch.delenv(name, raising=False)
        patch.setenv("PGSERVICEFILE", str(self._file))
        patch.setenv("HOME", str(folder))

    def environment(self, **variables: str) -> None:
        for name, value in variables.items():
            self._patch.setenv(name, value)

    def service(self, *lines: str, host: str = "") -> None:
        """Writes the service `caseload`, of the database of the tests."""
        parts = self._url
        fields = {"port": parts.port, "user": parts.username, "dbname": parts.path.removeprefix("/")}
        if parts.password:
            fields["password"] = unquote(parts.password)
        named = [f"{name}={value}" for name, value in {"host": host or parts.hostname, **fields}.items()]
        self._file.write_text("\n".join(["[caseload]", *named, *lines, ""]))


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres_url: str) -> Operator:
    return Operator(monkeypatch, tmp_path, postgres_url)


def chosen(url: str, name: str) -> object:
    """The parameter that a connection would be opened with; None leaves it to libpq."""
    return conninfo_to_dict(complete_conninfo(url, effective_parameters(url))).get(name)


@pytest.mark.usefixtures("operator")
def test_a_remote_host_of_the_url_needs_tls() -> None:
    for host in ("db.example", "127.0.0.1,db.example", "127.db.example", "127.1", "192.0.2.1", "[2001:db8::1]"):
        assert chosen(f"postgresql://{host}/caseload", "sslmode") == "require"
    for host in ("", "127.0.0.1", "127.8.0.1", "[::1]", "localhost", "%2Ftmp", "127.0.0.1,localhost"):
        assert chosen(f"postgresql://{host}/caseload", "sslmode") is None


@pytest.mark.parametrize(
    ("variable", "value"), [("PGHOST", "db.example"), ("PGHOSTADDR", "192.0.2.1"), ("PGSERVICE", "caseload")]
)
def test_a_remote_host_outside_the_url_needs_tls_too(operator: Operator, variable: str, value: str) -> None:
    operator.service(host="db.example")
    assert chosen("postgresql:///?service=caseload", "sslmode") == "require"
    assert chosen("postgresql:///caseload", "sslmode") is None
    operator.environment(**{variable: value})
    assert chosen("postgresql:///caseload", "sslmode") == "require"
    # Only an address goes before the host of the URL.
    assert chosen("postgresql://127.0.0.1/caseload", "sslmode") == ("require" if variable == "PGHOSTADDR" else None)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_an_sslmode_that_the_operator_set_is_kept(operator: Operator, mode: str) -> None:
    assert chosen(f"postgresql://db.example/caseload?sslmode={mode}", "sslmode") == mode
    operator.service(f"sslmode={mode}", host="db.example")
    if mode != "prefer":  # libpq does not distinguish its own default from that of a service
        assert chosen("postgresql:///?service=caseload", "sslmode") == mode
    operator.environment(PGSSLMODE=mode)
    assert chosen("postgresql://db.example/caseload", "sslmode") == mode


@pytest.fixture(scope="module")
def encrypting() -> Iterator[Cluster]:
    """A cluster with TLS and a self-signed certificate."""
    with Cluster(QUICK) as cluster:
        certificate = trustme.CA().issue_cert("db.example")
        for name, blob in (("cert", certificate.cert_chain_pems[0]), ("key", certificate.private_key_pem)):
            file = cluster.folder / f"{name}.pem"
            blob.write_to_path(file)
            file.chmod(0o600)
            os.chown(file, cluster.folder.stat().st_uid, -1)
            cluster.configure(f"ssl_{name}_file", str(file))
        cluster.configure("ssl", "on")
        eventually(lambda: shown(f"{cluster.url()}?sslmode=prefer", "ssl") == {"ssl": "on"})
        yield cluster


@pytest.mark.slow
@pytest.mark.parametrize("where", ["service", "PGSSLMODE"])
def test_a_certificate_check_that_the_operator_asked_for_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypting: Cluster, where: str
) -> None:
    operator, url = Operator(monkeypatch, tmp_path, encrypting.url()), encrypting.url()
    assert shown(f"{url}?sslmode=require", "ssl") == {"ssl": "on"}
    if where == "service":
        operator.service("sslmode=verify-full", "sslrootcert=/nowhere")
        url = "postgresql:///?service=caseload"
    else:
        operator.environment(PGSSLMODE="verify-full", PGSSLROOTCERT="/nowhere")
    with pytest.raises(psycopg.OperationalError, match='root certificate file "/nowhere" does not exist'):
        connect(url)


@pytest.mark.parametrize("where", ["service", "PGOPTIONS", "url"])
def test_a_search_path_that_the_operator_set_is_kept(operator: Operator, postgres_url: str, where: str) -> None:
    url, options = postgres_url, "-c search_path=app"
    if where == "service":
        operator.service(f"options={options}")
        url = "postgresql:///?service=caseload"
    elif where == "url":
        url = with_options(postgres_url, options)
    else:
        operator.environment(PGOPTIONS=options)
    assert shown(url, "search_path", "lock_timeout") == {"search_path": "app", "lock_timeout": "3s"}


def test_every_default_gives_way_to_the_operator(operator: Operator) -> None:
    others = {"application_name": "theirs", "connect_timeout": "7", "target_session_attrs": "primary"}
    operator.service(*(f"{name}={value}" for name, value in others.items()), host="127.0.0.1")
    for name, value in others.items():
        assert chosen("postgresql:///?service=caseload", name) == value
    operator.environment(PGAPPNAME="mine", PGCONNECT_TIMEOUT="9", PGTARGETSESSIONATTRS="any")
    assert chosen("postgresql://127.0.0.1/caseload", "connect_timeout") == "9"
    assert chosen("postgresql://127.0.0.1/caseload", "target_session_attrs") == "any"
    assert chosen("postgresql:///?service=caseload", "connect_timeout") == "7"  # libpq prefers the service


def test_a_local_name_that_leads_to_another_machine_is_refused_without_tls(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caseload_server.store.backends.postgres import connection as module

    monkeypatch.setattr(psycopg.ConnectionInfo, "hostaddr", property(lambda _: "192.0.2.1"))
    host = urlsplit(postgres_url).netloc.rpartition("@")[2]
    for url in (postgres_url, postgres_url.replace(host, f"{host},{host}")):
        with pytest.raises(SessionRefused, match="no TLS"):
            module.connect(url)
    assert shown(f"{postgres_url}?sslmode=disable", "lock_timeout") == {"lock_timeout": "3s"}


def test_the_encoding_of_the_environment_does_not_apply(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with closing(connect(postgres_url)) as connection:
        assert connection.execute("SELECT '\N{SNOWMAN}'").fetchall() == [("\N{SNOWMAN}",)]


@pytest.mark.parametrize("more", ["", "ignore_startup_parameters = options,extra_float_digits"])
def test_session_pooling_keeps_the_settings_and_the_store_works(postgres_url: str, more: str) -> None:
    with pgbouncer(postgres_url, "session", more) as pooled:
        connect(pooled, refuses_pooling=True).close()
        assert shown(pooled, *EXPECTED) == EXPECTED
        with closing(PostgresDatabase(pooled, connections=2)) as database:
            store = RelationshipStore(database, lambda: 1)
            patient = make(store, PATIENT, "")
            assert store.get(PATIENT, patient.patient_id) == patient
            database.check()
            database.wait_for_commit()


def test_options_of_the_url_reach_the_session_through_a_pooler_that_ignores_them(postgres_url: str) -> None:
    with pgbouncer(postgres_url, "session", "ignore_startup_parameters = options") as pooled:
        settings = {"search_path": "app", "lock_timeout": "7s", "synchronous_commit": "remote_apply"}
        url = with_options(pooled, " ".join(f"-c {name}={value}" for name, value in settings.items()))
        assert shown(url, *settings) == settings


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("more", ["", "server_round_robin = 1\nmin_pool_size = 3", "default_pool_size = 1"])
def test_transaction_pooling_is_refused(postgres_url: str, mode: str, more: str) -> None:
    with (
        pgbouncer(postgres_url, mode, more) as pooled,  # type: ignore[arg-type]
        pytest.raises(SessionRefused, match="use session pooling"),
    ):
        connect(pooled, refuses_pooling=True)


def test_a_direct_connection_is_not_taken_for_a_pooler(postgres_url: str) -> None:
    connect(postgres_url, refuses_pooling=True).close()
