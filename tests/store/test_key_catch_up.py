"""Words and keys of records that an older version wrote."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import Merge
from caseload_server.store import PATIENT, RelationshipStore, key_catch_up
from caseload_server.store.search import keys, record_words

from tests.store import older_instance
from tests.store.older_instance import SYSTEM
from tests.store.store_calls import CALL, AnyKind, both_kinds, broken, delete, dump, head, ids, make, run, update
from tests.support.waiting import HUNG_SECONDS

HIDDEN = "GC-1\u200b"
"""An identifier that looks like GC-1."""


def catch_up(store: RelationshipStore) -> int:
    """Returns the number of records that got keys."""
    return sum(store.key_catch_up.run())


def stored_words(store: RelationshipStore, kind: AnyKind, record_id: str) -> list[str]:
    sql = f"SELECT word FROM {kind.name}_name_word WHERE {kind.id_column} = :id ORDER BY word"
    return [word for (word,) in run(store, sql, {"id": record_id})]


def holders(store: RelationshipStore, kind: AnyKind) -> list[tuple[str, str, int | None]]:
    """The id, key and holds_key of each identifier, in order of the id."""
    sql = f"SELECT {kind.id_column}, value_key, holds_key FROM {kind.name}_identifier ORDER BY 1, value"
    return [(record_id, key, holds_key) for record_id, key, holds_key in run(store, sql)]


def doubles(store: RelationshipStore) -> dict[str, list[str]]:
    """The ids of the broken rules that verify reports."""
    return {rule.rule: rule.ids for rule in broken(store)}


def identified(*values: str) -> str:
    return json.dumps([[SYSTEM, value] for value in values])


@both_kinds
def test_a_record_of_an_older_version_gets_its_words_and_keys_and_nothing_else_changes(
    store: RelationshipStore, kind: AnyKind
) -> None:
    older_instance.create(store._database, kind, "a", "Nia O\u2019Mock", "\uff27-1", "B")
    make(store, kind, "b", display_name="Before")
    older_instance.rename(store._database, kind, "b", "J.R.Mock")
    assert ids(store, kind, name_prefix="mock") == []
    before, revision = dump(store), head(store)
    assert store.key_catch_up.count() == 2
    assert catch_up(store) == 2
    for record_id in "ab":
        record = store.get(kind, record_id)
        assert stored_words(store, kind, record_id) == record_words(record.display_name, [])
        sql = f"SELECT name_key, email_key, keyed_etag FROM {kind.name} WHERE {kind.id_column} = :id"
        assert run(store, sql, {"id": record_id}) == [tuple(keys(record).values())]
    assert ids(store, kind, name_prefix="mock") == ["a", "b"]
    assert holders(store, kind) == [("a", "B", 1), ("a", "G-1", 1)]
    after, width = dump(store), len(kind.record._fields)
    assert [row[:width] for row in after[kind.name]] == [row[:width] for row in before[kind.name]]
    assert (head(store), catch_up(store), store.key_catch_up.count()) == (revision, 0, 0)


@both_kinds
def test_an_update_of_other_fields_leaves_outdated_words_and_keys_to_the_catch_up(
    store: RelationshipStore, kind: AnyKind
) -> None:
    older_instance.create(store._database, kind, "a", "Nia O\u2019Mock", "\uff27-1")
    update(store, kind, "a", email="nia@mock.example")
    assert store.key_catch_up.count() == 1
    catch_up(store)
    assert holders(store, kind) == [("a", "G-1", 1)]
    assert ids(store, kind, name_prefix="mock") == ["a"]


def test_it_works_in_batches_and_continues_after_an_interruption(
    store: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_catch_up, "BATCH_SIZE", 2)
    for number in range(5):
        older_instance.create(store._database, PATIENT, f"p{number}", "Nia Mock-Faker", f"{number}\uff10")
    assert next(store.key_catch_up.run()) == 2
    assert store.key_catch_up.count() == 3
    assert list(store.key_catch_up.run()) == [2, 1]
    assert ids(store, PATIENT, name_prefix="mockfaker") == [f"p{number}" for number in range(5)]
    assert [key for _, key, _ in holders(store, PATIENT)] == [f"{number}0" for number in range(5)]


@both_kinds
def test_of_two_live_records_with_the_same_key_the_older_one_holds_it(store: RelationshipStore, kind: AnyKind) -> None:
    older_instance.create(store._database, kind, "a", "Younger", HIDDEN, created_us=2)
    older_instance.create(store._database, kind, "b", "Older", "GC-1", created_us=1)
    older_instance.create(store._database, kind, "c", "Third", "\uff27C-1", created_us=2)
    catch_up(store)
    assert holders(store, kind) == [("a", "GC-1", None), ("b", "GC-1", 1), ("c", "GC-1", None)]
    assert doubles(store) == {f"the key of an identifier belongs to one {kind.name} that is not deleted": ["a", "c"]}
    with pytest.raises(errors.IdentifierTaken) as taken:
        make(store, kind, "d", identifiers=identified("GC-\uff11"))
    assert [resource.name for resource in taken.value.resources] == ["b"]
    delete(store, kind, "b")
    catch_up(store)
    assert holders(store, kind) == [("a", "GC-1", 1), ("b", "GC-1", None), ("c", "GC-1", None)]
    delete(store, kind, "c")
    assert doubles(store) == {}


def test_an_older_record_takes_the_key_from_a_younger_one(store: RelationshipStore) -> None:
    make(store, PATIENT, "new", identifiers=identified("GC-1"))
    older_instance.create(store._database, PATIENT, "old", "Older", HIDDEN, created_us=1)
    assert holders(store, PATIENT) == [("new", "GC-1", 1), ("old", "", None)]
    catch_up(store)
    assert holders(store, PATIENT) == [("new", "GC-1", None), ("old", "GC-1", 1)]


def test_a_younger_record_does_not_take_the_key_that_a_record_holds(store: RelationshipStore) -> None:
    make(store, PATIENT, "holder", identifiers=identified("GC-1"))
    created_us = store.get(PATIENT, "holder").created_us
    older_instance.create(store._database, PATIENT, "later", "Younger", HIDDEN, created_us=created_us + 1)
    catch_up(store)
    assert holders(store, PATIENT) == [("holder", "GC-1", 1), ("later", "GC-1", None)]


def test_an_older_instance_changes_identifiers_and_frees_their_keys(store: RelationshipStore) -> None:
    older_instance.create(store._database, PATIENT, "a", "Holder", "GC-1", "B-2", created_us=1)
    older_instance.create(store._database, PATIENT, "b", "Double", HIDDEN, created_us=2)
    catch_up(store)
    older_instance.identify(store._database, PATIENT, "a", "B-2", "\uff23-3")
    catch_up(store)
    assert holders(store, PATIENT) == [("a", "B-2", 1), ("a", "C-3", 1), ("b", "GC-1", 1)]


def test_the_oldest_record_gets_a_key_that_an_older_instance_takes_from_one_and_gives_to_another(
    store: RelationshipStore,
) -> None:
    for created_us, (record_id, value) in enumerate([("a", "GC-1"), ("b", HIDDEN), ("c", "C-3")], 1):
        older_instance.create(store._database, PATIENT, record_id, "Nia Mock", value, created_us=created_us)
    catch_up(store)
    older_instance.identify(store._database, PATIENT, "a", "A-2")
    older_instance.identify(store._database, PATIENT, "c", "\uff27C-1")
    catch_up(store)
    assert holders(store, PATIENT) == [("a", "A-2", 1), ("b", "GC-1", 1), ("c", "GC-1", None)]


def test_a_record_with_the_key_of_another_one_keeps_its_identifier_until_it_is_mended(store: RelationshipStore) -> None:
    older_instance.create(store._database, PATIENT, "a", "Holder", "GC-1", created_us=1)
    older_instance.create(store._database, PATIENT, "b", "Double", HIDDEN, created_us=2)
    catch_up(store)
    update(store, PATIENT, "b", identifiers=identified(HIDDEN, "B-2"))
    assert holders(store, PATIENT) == [("a", "GC-1", 1), ("b", "B-2", 1), ("b", "GC-1", None)]
    update(store, PATIENT, "b", identifiers=identified("B-2"))
    assert doubles(store) == {}
    with pytest.raises(errors.IdentifierTaken):
        update(store, PATIENT, "b", identifiers=identified(HIDDEN))


@pytest.mark.parametrize(("source", "target", "value"), [("a", "b", HIDDEN), ("b", "a", "GC-1")])
def test_a_merge_of_two_records_with_the_same_key_mends_them(
    store: RelationshipStore, source: str, target: str, value: str
) -> None:
    older_instance.create(store._database, PATIENT, "a", "Nia Mock", "GC-1", created_us=1)
    older_instance.create(store._database, PATIENT, "b", "Nia Mock", HIDDEN, created_us=2)
    catch_up(store)
    merged = store.merge(Merge(source, target), CALL).target
    assert json.loads(merged.identifiers) == [[SYSTEM, value]]
    catch_up(store)
    held = [record_id for record_id, _, holds_key in holders(store, PATIENT) if holds_key]
    assert (held, doubles(store)) == ([target], {})


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("b", "a")])
def test_an_undone_merge_gives_two_records_with_the_same_key_what_they_had(
    store: RelationshipStore, source: str, target: str
) -> None:
    older_instance.create(store._database, PATIENT, "a", "Nia Mock", "GC-1", created_us=1)
    older_instance.create(store._database, PATIENT, "b", "Nia Mock", HIDDEN, "B-2", created_us=2)
    catch_up(store)
    before = [json.loads(store.get(PATIENT, one).identifiers) for one in "ab"]
    store.merge(Merge(source, target), CALL)
    store.unmerge(source, CALL)
    assert [json.loads(store.get(PATIENT, one).identifiers) for one in "ab"] == before
    catch_up(store)
    held = [record_id for record_id, key, holds_key in holders(store, PATIENT) if holds_key and key == "GC-1"]
    rule = "the key of an identifier belongs to one patient that is not deleted"
    assert (held, doubles(store)) == ([source], {rule: [target]})


def test_one_record_may_have_had_two_identifiers_with_one_key(store: RelationshipStore) -> None:
    older_instance.create(store._database, PATIENT, "a", "Twice", "GC-1", HIDDEN)
    catch_up(store)
    assert sorted(holds_key or 0 for _, _, holds_key in holders(store, PATIENT)) == [0, 1]
    assert doubles(store) == {}
    update(store, PATIENT, "a", email="nia@mock.example")
    delete(store, PATIENT, "a")
    assert store.undelete(PATIENT, "a", CALL).record.identifiers == identified("GC-1", HIDDEN)


@both_kinds
def test_an_undelete_releases_all_identifiers_with_a_key_that_another_record_holds(
    store: RelationshipStore, kind: AnyKind
) -> None:
    older_instance.create(store._database, kind, "a", "Ann Lee", "GC-1", HIDDEN, "GC-2")
    catch_up(store)
    delete(store, kind, "a")
    make(store, kind, "b", identifiers=identified("GC-1"))
    restored = store.undelete(kind, "a", CALL, release_identifiers=True).record
    assert json.loads(restored.identifiers) == [[SYSTEM, "GC-2"]]
    assert holders(store, kind) == [("a", "GC-2", 1), ("b", "GC-1", 1)]
    assert broken(store) == []


@pytest.mark.slow
def test_writers_and_the_catch_up_do_not_disturb_each_other(store: RelationshipStore) -> None:
    patients = [f"p{number}" for number in range(12)]
    for patient_id in patients:
        older_instance.create(store._database, PATIENT, patient_id, "Nia Mock-Before", f"{patient_id}\u200b")
    ended = threading.Event()

    def rename(number: int) -> int:
        for step in range(25):
            for patient_id in patients[number::3]:
                newest = f"Nia Mock{step}"
                if number:
                    update(store, PATIENT, patient_id, display_name=newest)
                else:
                    older_instance.rename(store._database, PATIENT, patient_id, newest)
        return number

    def catch_up_often() -> None:
        while not ended.is_set():
            catch_up(store)

    with ThreadPoolExecutor() as threads:
        runner = threads.submit(catch_up_often)
        try:
            assert list(threads.map(rename, range(3), timeout=HUNG_SECONDS)) == [0, 1, 2]
        finally:
            ended.set()
        runner.result(HUNG_SECONDS)
    catch_up(store)
    for patient_id in patients:
        record = store.get(PATIENT, patient_id)
        assert record.display_name == "Nia Mock24"
        assert stored_words(store, PATIENT, patient_id) == ["mock24", "nia"]
    assert store.key_catch_up.count() == 0
    assert broken(store) == []


@both_kinds
def test_an_update_of_another_field_leaves_a_record_of_an_older_version_to_be_caught_up(
    store: RelationshipStore, kind: AnyKind
) -> None:
    older_instance.create(store._database, kind, "a", "Nia O\u2019Mock")
    update(store, kind, "a", email="Nia@Example.org")
    assert (ids(store, kind, name_prefix="mock"), store.key_catch_up.count()) == ([], 1)
    assert catch_up(store) == 1
    assert (ids(store, kind, name_prefix="mock"), store.key_catch_up.count()) == (["a"], 0)
    assert doubles(store) == {}
