"""Upgrades from the version before keys: `migrate`, its dry run, and servers beside an older instance."""

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from caseload_server.store import PATIENT, THERAPIST
from caseload_server.store.backends.factory import backend_for, connect
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.protocol import Database

from tests.process.command_runner import CASELOAD, DRY_RUN, STEPS, caseload
from tests.store import older_instance
from tests.support.api_driver import ApiDriver, refused
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually

BEFORE_KEYS = STEPS.index("0007_find")
HIDDEN = "GC-1\u200b"
"""An identifier that looks like GC-1."""


@pytest.fixture(params=["sqlite", "postgres"])
def previous_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the schema of the version before keys."""
    if request.param == "sqlite":
        url, drop = f"sqlite:///{tmp_path}/caseload.db", []
    else:
        drop = [f"caseload_test_{secrets.token_hex(8)}"]
        url = request.getfixturevalue("postgres").create_database(drop[0])
    with backend_for(url) as (migrate_module, location):
        migrate_module.migrate(location, migrations(request.param)[:BEFORE_KEYS])
    yield url
    for name in drop:
        request.getfixturevalue("postgres").drop_database(name)


@contextmanager
def older(url: str) -> Iterator[Database]:
    """The database as an older instance has it open."""
    with backend_for(url) as (_, location), closing(connect(url, location)) as database:
        yield database


def found(api: ApiDriver, prefix: str) -> list[str]:
    answer = api.send("ListPatients", filter={"name_prefix": prefix})
    return [patient.patient_id for patient in answer.patients]


@pytest.mark.slow
def test_a_dry_run_lists_records_with_the_same_identifier_and_migrate_makes_their_keys(
    previous_url: str, tmp_path: Path
) -> None:
    with older(previous_url) as database:  # no record is newer than the empty change log
        older_instance.create(database, PATIENT, "young", "Nia O\u2019Mock", HIDDEN, created_us=0)
        older_instance.create(database, PATIENT, "old", "Nia Mock", "GC-1", created_us=-1)
        older_instance.create(database, THERAPIST, "t", "Tia Mock", "GC-1", created_us=-1)
    database_flag = ("--database", previous_url)
    dry_run = caseload(tmp_path, *DRY_RUN, *database_flag)
    line = "same identifier: patient young as patient old, which is older and keeps its key"
    assert dry_run.stdout.splitlines() == [*STEPS[BEFORE_KEYS:], line]
    migrated = caseload(tmp_path, "migrate", *database_flag)
    assert (migrated.returncode, migrated.stdout.splitlines()) == (0, STEPS[BEFORE_KEYS:])
    assert migrated.stderr == "words and keys of 3 records made\n"
    assert caseload(tmp_path, *DRY_RUN, *database_flag).stdout.splitlines() == [line]
    verified = caseload(tmp_path, "verify", *database_flag)
    rule = "broken: the key of an identifier belongs to one patient that is not deleted: 1 (young)"
    assert [one for one in verified.stdout.splitlines() if "broken" in one] == [rule]
    assert not any("GC-1" in ended.stdout + ended.stderr for ended in (dry_run, migrated, verified))
    with ServerProcess(previous_url, command=CASELOAD) as server, ApiDriver(server.address) as api:
        assert found(api, "omock") == ["young"]


@pytest.mark.slow
def test_an_older_instance_keeps_writing_while_a_newer_one_serves(previous_url: str, tmp_path: Path) -> None:
    with older(previous_url) as database:
        older_instance.create(database, PATIENT, "before", "Nia Mocka-Before")
        migrated = caseload(tmp_path, "migrate", "--database", previous_url)
        assert migrated.returncode == 0, migrated.stderr
        older_instance.create(database, PATIENT, "between", "J.R.Mocka")
        with ServerProcess(previous_url, command=CASELOAD) as server, ApiDriver(server.address) as api:
            eventually(lambda: found(api, "mocka") == ["before", "between"])
            older_instance.rename(database, PATIENT, "before", "Nia\u2013Mockb")
            older_instance.create(database, PATIENT, "beside", "O\u2019Mocka", HIDDEN)
            eventually(lambda: found(api, "mockb") == ["before"])
            eventually(lambda: found(api, "mocka") == ["beside", "between"])
            double = {"display_name": "Nia", "identifiers": [{"system": older_instance.SYSTEM, "value": "GC-1"}]}
            assert refused(api.send, "CreatePatient", patient=double).reason == "IDENTIFIER_TAKEN"
