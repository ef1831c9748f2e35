"""Export and import copy a store exactly."""

import gzip
import io
from pathlib import Path

import pytest
from caseload_server.config import Config, SettingError
from caseload_server.domain import errors
from caseload_server.domain.enums import END_EXPIRED, STATE_ENDED
from caseload_server.domain.requests import AssignmentQuery, ChangeQuery, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import migrate, open_store
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.portability.import_lines import ImportRefused
from caseload_server.store.portability.import_parser import batches

from tests.store import older_instance
from tests.store.conftest import Clock
from tests.store.portability.copies import EXPIRE_US, digest, exported, fill, imported
from tests.store.store_calls import ALL, AnyKind, both_kinds, broken, delete, dump, ids, make, request, run


def test_an_import_equals_the_export_and_breaks_no_rule(source: str, database_url: str, clock: Clock) -> None:
    assert imported(exported(source), database_url) == digest(source) == digest(database_url)
    old, new = (open_store(Config(database=url), clock) for url in (source, database_url))
    before, after = dump(old), dump(new)
    for tables in (before, after):
        [(_, _, *rest)] = tables.pop("store")
        tables["rest"] = rest  # the secret, and the bounds of the log
    assert after == before
    old.close()
    new.close()


def test_a_new_file_imports_the_export_of_any_database(
    store: RelationshipStore, database_url: str, tmp_path: Path
) -> None:
    fill(store)
    target = f"sqlite:///{tmp_path}/target.db"
    imported(exported(database_url), target)
    assert digest(target) == digest(database_url)
    assert exported(target) == exported(database_url)


def test_the_imported_store_continues_from_the_last_revision(source: str, database_url: str, clock: Clock) -> None:
    imported(exported(source), database_url)
    old, new = (open_store(Config(database=url), clock) for url in (source, database_url))
    assert ids(new, THERAPIST, name_prefix="zoe muller") == ["t0"]
    assert ids(new, PATIENT, name_prefix='o"neil') == ["p1"]
    assert ids(new, PATIENT, name_prefix="other2") == ["p2"]
    assert ids(new, PATIENT, name_prefix="alias zoe muller") == ids(new, PATIENT, name_prefix="other0") == ["p0"]
    assert ids(new, THERAPIST, identifier=("urn:x", "4")) == ["t4"]
    assert ids(new, THERAPIST, specialties=("b",)) == ["t0", "t1", "t3", "t4", "t5"]
    # A repeat of a remembered request writes nothing, and a revision of the old store is refused.
    head = new.head_revision()
    assert new.update(THERAPIST, Update("t4", {"email": "t4@example.org"}), request("remembered")).record.email
    assert new.head_revision() == head == old.head_revision()
    with pytest.raises(errors.RevisionForeign):
        new.list_changes(ChangeQuery(), old.keys.revision(head), 10)
    with pytest.raises(errors.IdentifierTaken):
        make(new, THERAPIST, "another", identifiers='[["urn:x","4"]]')
    logs = [one.list_changes(ChangeQuery(), "", 1000).change_sets for one in (old, new)]
    assert len({str(log).replace(one.keys.store_id, "id") for one, log in zip((old, new), logs, strict=True)}) == 1
    assert new.log_head() == old.log_head()
    make(new, THERAPIST, "another")
    assert new.head_revision() == head + 1
    old.close()
    new.close()


@both_kinds
def test_an_import_leaves_a_key_of_several_live_records_to_the_oldest(
    tmp_path: Path, database_url: str, clock: Clock, kind: AnyKind
) -> None:
    url = f"sqlite:///{tmp_path}/source.db"
    old = open_store(Config(database=url), clock)
    older_instance.create(old._database, kind, "a", "Younger", "GC-1\u200b", "B\uff12", created_us=3)
    older_instance.create(old._database, kind, "b", "Older", "GC-1", "G\u00adC-1", created_us=2)
    older_instance.create(old._database, kind, "c", "Deleted", "\uff27C-1", created_us=1)
    delete(old, kind, "c")
    old.close()
    imported(exported(url), database_url)
    new = open_store(Config(database=database_url), clock)
    sql = f"SELECT {kind.id_column}, value_key, live, holds_key FROM {kind.name}_identifier ORDER BY 1, 2, value"
    assert run(new, sql) == [
        ("a", "B2", 1, 1),
        ("a", "GC-1", 1, None),
        ("b", "GC-1", 1, 1),
        ("b", "GC-1", 1, None),
        ("c", "GC-1", None, None),
    ]
    assert list(new.key_catch_up.run()) == []
    assert [rule.ids for rule in broken(new)] == [["a"]]
    new.close()


@both_kinds
def test_the_imported_store_does_not_reuse_a_purged_id(
    tmp_path: Path, database_url: str, clock: Clock, kind: AnyKind
) -> None:
    url = f"sqlite:///{tmp_path}/source.db"
    old = open_store(Config(database=url), clock)
    make(old, kind, "gone")
    delete(old, kind, "gone")
    assert [*old.purger.purge_records(kind, 2**62)] == [(1, 0)]
    old.close()
    imported(exported(url), database_url)
    new = open_store(Config(database=database_url), clock)
    with pytest.raises(errors.IdTaken):
        make(new, kind, "gone")
    new.close()


def test_what_expired_since_the_export_is_not_in_force_and_is_ended(
    source: str, database_url: str, clock: Clock
) -> None:
    imported(exported(source), database_url)
    store = open_store(Config(database=database_url), clock)
    pair = [("t1", "p2")]
    assert store.check_assignments(pair, clock())[0][0].assignment_id is not None
    clock.now_us = EXPIRE_US
    assert store.check_assignments(pair, clock())[0][0].assignment_id is None
    store.end_expired()
    [ended] = store.list_assignments(AssignmentQuery("t1", "p2", states=(STATE_ENDED,)), ALL).records
    assert (ended.end_us, ended.end_reason) == (EXPIRE_US, END_EXPIRED)
    store.close()
    digest(database_url)


def test_an_empty_store_can_be_exported_and_imported(tmp_path: Path, database_url: str, clock: Clock) -> None:
    empty = f"sqlite:///{tmp_path}/empty.db"
    open_store(Config(database=empty), clock).close()
    assert imported(exported(empty), database_url) == digest(database_url)


@pytest.mark.slow
def test_an_export_of_several_pages_is_complete_and_in_order(
    tmp_path: Path, store: RelationshipStore, database_url: str
) -> None:
    count = 2500
    for number in range(count):
        make(store, PATIENT, f"p{number:04}")
    lines = exported(database_url)
    assert lines.count(b'\n{"patient":') == lines.count(b'\n{"change_set":') == lines.count(b'\n{"change":') == count
    target = f"sqlite:///{tmp_path}/target.db"
    imported(lines, target)
    assert digest(target) == digest(database_url)


def test_an_import_reads_a_file_compressed_with_gzip(source: str, database_url: str) -> None:
    assert imported(gzip.compress(exported(source)), database_url) == digest(source) == digest(database_url)


def test_an_import_holds_few_of_the_longest_lines_at_once(source: str) -> None:
    """Compressed, a thousand of them take less than a mebibyte."""
    header, row, *_ = exported(source).splitlines(keepends=True)
    line = b'{"therapist":{"a":"%s"}}\n' % (b"x" * 1_000_000)
    lines = io.BytesIO(header + row + 100 * line)
    with pytest.raises(ImportRefused, match=r"^line 3: must have exactly the columns of therapist"):
        list(batches(lines, migrations("sqlite")[-1].name))
    assert lines.tell() < 10 * len(line)


def test_an_import_fills_a_migrated_and_empty_database_in_place(source: str, database_url: str, clock: Clock) -> None:
    migrate(database_url)
    assert imported(exported(source), database_url) == digest(source) == digest(database_url)
    store = open_store(Config(database=database_url), clock)
    make(store, THERAPIST, "another")
    store.close()
    with pytest.raises(SettingError, match=r"^--database: is not empty$"):
        imported(exported(source), database_url)


def test_an_export_of_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--database: the file does not exist"):
        exported(f"sqlite:///{tmp_path}/nothing.db")
    assert list(tmp_path.iterdir()) == []
