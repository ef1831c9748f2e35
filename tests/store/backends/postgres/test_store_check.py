"""The connection that an instance keeps: its check, and the lock that keeps an import away."""

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg
import pytest
from caseload_server.config import Config, SettingError
from caseload_server.domain import errors
from caseload_server.store import PATIENT
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.backends.postgres import driver_errors
from caseload_server.store.backends.postgres.bulk_load import bulk_load
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.store.backends.postgres.proxy import Proxy
from tests.store.store_calls import make
from tests.support.postgres.pgbouncer import pgbouncer
from tests.support.waiting import eventually

SESSIONS = """
SELECT pid, (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pg_locks.pid = pg_stat_activity.pid)
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend' AND application_name LIKE 'caseload%'"""


@pytest.fixture
def admin(postgres_url: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    with psycopg.connect(f"{postgres_url}?application_name=admin", autocommit=True) as connection:
        yield connection


def test_an_opened_store_keeps_one_connection_which_holds_the_lock(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    with closing(open_store(Config(database=postgres_url), lambda: 1)) as store:
        [kept] = [row for row in admin.execute(SESSIONS.encode()) if row[1]]
        store.check()
        store.check()
        assert kept in admin.execute(SESSIONS.encode()).fetchall()
    eventually(lambda: not admin.execute(SESSIONS.encode()).fetchall())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caseload", "billing"])
def test_an_import_into_a_served_store_is_refused_whatever_its_application_name(postgres_url: str, name: str) -> None:
    url = f"{postgres_url}?application_name={name}"
    with (
        closing(open_store(Config(database=url), lambda: 1)),
        pytest.raises(SchemaError, match="stop its instances first"),
        bulk_load(postgres_url),
    ):
        pass
    with bulk_load(postgres_url):  # the lock ends with the instance
        pass


def test_an_import_is_refused_through_a_pooler_too(postgres_url: str) -> None:
    with (
        pgbouncer(postgres_url, "session") as pooled,
        closing(open_store(Config(database=pooled), lambda: 1)),
        pytest.raises(SchemaError, match="stop its instances first"),
        bulk_load(postgres_url),
    ):
        pass


def test_an_instance_does_not_start_while_an_import_runs(postgres_url: str) -> None:
    with bulk_load(postgres_url), pytest.raises(SchemaError, match="an import or a migration is running"):
        PostgresDatabase(postgres_url).open()


def test_a_start_during_an_import_names_the_setting(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as importing:
        importing.execute("SELECT pg_advisory_xact_lock(1129532501, hashtext('public'))")  # all that an import locks
        with pytest.raises(SettingError, match="--database: an import or a migration is running"):
            open_store(Config(database=postgres_url), lambda: 1)


def test_a_lost_connection_takes_the_lock_again(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    with Proxy(postgres_url) as proxy, closing(PostgresDatabase(proxy.url)) as database:
        database.open()
        proxy.cut_all()
        with pytest.raises(errors.StoreUnavailable):
            database.check()
        database.check()
        with pytest.raises(SchemaError, match="stop its instances first"), bulk_load(postgres_url):
            pass
        eventually(lambda: [held for _, held in admin.execute(SESSIONS.encode())] == [1])


def test_an_instance_is_not_ready_while_an_import_runs_that_began_when_it_was_cut_off(postgres_url: str) -> None:
    with Proxy(postgres_url) as proxy, closing(PostgresDatabase(proxy.url)) as database:
        database.open()
        proxy.cut_all()
        with bulk_load(postgres_url):
            for _ in range(2):  # the lost connection, and the lock
                with pytest.raises(errors.StoreUnavailable) as refusal:
                    database.check()
            assert refusal.value.detail == "an import or a migration is running"
        database.check()


@pytest.mark.parametrize("column", ["store_id = 'other'", "secret = 'other'"])
def test_an_instance_whose_store_was_replaced_stops_for_good(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]", column: str
) -> None:
    with Proxy(postgres_url) as proxy, closing(open_store(Config(database=proxy.url), lambda: 1)) as store:
        make(store, PATIENT, "p")
        [before] = admin.execute("SELECT store_id, secret FROM store").fetchall()
        proxy.cut_all()
        admin.execute(f"UPDATE store SET {column}".encode())
        with pytest.raises(errors.StoreUnavailable):  # the lost connection
            store.check()
        for _ in range(2):
            with pytest.raises(errors.StoreUnavailable) as refusal:
                store.check()
            assert refusal.value.detail == "the database holds another store than at the start: restart the instance"
            admin.execute("UPDATE store SET store_id = %s, secret = %s", before)
        with pytest.raises(errors.ShuttingDown):
            store.get(PATIENT, "p")
        with pytest.raises(errors.ShuttingDown):
            make(store, PATIENT, "q")
        eventually(lambda: not [row for row in admin.execute(SESSIONS.encode()) if row[1]])


def test_an_instance_notices_another_store_without_a_lost_connection(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    """An operator restores an older dump under a running instance, and gives the store a new id."""
    with closing(open_store(Config(database=postgres_url), lambda: 1)) as store:
        store.check()
        admin.execute("UPDATE store SET store_id = 'other'")
        with pytest.raises(errors.StoreUnavailable) as refusal:
            store.check()
        assert refusal.value.detail == "the database holds another store than at the start: restart the instance"
        with pytest.raises(errors.ShuttingDown):
            store.get(PATIENT, "p")


def test_an_import_that_ran_while_an_instance_was_cut_off_stops_the_instance(postgres_url: str) -> None:
    with Proxy(postgres_url) as proxy, closing(open_store(Config(database=proxy.url), lambda: 1)) as store:
        proxy.cut_all()
        with bulk_load(postgres_url) as load:
            load.set_store_row({"secret": b"of the exported store"})
        with pytest.raises(errors.StoreUnavailable):  # the lost connection
            store.check()
        with pytest.raises(errors.StoreUnavailable) as refusal:
            store.check()
        assert refusal.value.detail == "the database holds another store than at the start: restart the instance"


def test_stores_of_two_schemas_do_not_share_the_lock(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    from caseload_server.store.backends.postgres.migrate import migrate

    admin.execute("CREATE SCHEMA other")
    other = f"{postgres_url}?options=-csearch_path%3Dother"
    migrate(other)
    with closing(open_store(Config(database=postgres_url), lambda: 1)), bulk_load(other):
        pass


def test_a_database_that_accepts_no_writes_is_not_ready(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/")
    with Proxy(postgres_url) as proxy, closing(PostgresDatabase(f"{proxy.url}?target_session_attrs=any")) as database:
        database.check()
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        try:
            proxy.cut_all()
            with pytest.raises(errors.StoreUnavailable):
                database.check()
            with pytest.raises(errors.StoreUnavailable) as refusal:
                database.check()
            assert (refusal.value.sqlstate, refusal.value.detail) == ("25006", "the database accepts no writes")
        finally:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())


def test_sessions_that_accept_no_writes_take_readiness_and_are_replaced_when_they_may_write(
    postgres_url: str, admin: "psycopg.Connection[tuple[object, ...]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider makes a full database read-only. Sessions keep the setting with which they began."""
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.0)
    name = urlsplit(postgres_url).path.removeprefix("/")
    with closing(open_store(Config(database=f"{postgres_url}?target_session_attrs=any"), lambda: 1)) as store:
        store.check()
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        try:
            with pytest.raises(errors.StoreUnavailable):
                make(store, PATIENT, "p")
            with pytest.raises(errors.StoreUnavailable) as refusal:
                store.check()
            assert refusal.value.sqlstate == "25006"
        finally:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        store.check()
        make(store, PATIENT, "p")
