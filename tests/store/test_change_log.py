import itertools
import random

import pytest
from caseload_server.api import convert
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import Change, ChangeSet
from caseload_server.domain.requests import CallContext, ChangeQuery
from caseload_server.domain.results import ChangePage
from caseload_server.store import THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import (
    assign,
    crowd,
    dump,
    fill,
    patients,
    remembered,
    run,
    therapists,
    transfer,
    unassign,
)

DAY_US = 24 * 3600 * 1_000_000


def page(store: RelationshipStore, after: str = "", size: int = 1000, **query: str) -> ChangePage:
    return store.list_changes(ChangeQuery(**query), after, size)


def walk(store: RelationshipStore, size: int, **query: str) -> list[ChangeSet]:
    """The whole log, page by page; at most 1000 pages."""
    sets: list[ChangeSet] = []
    after = ""
    for _ in range(1000):
        found = page(store, after, size, **query)
        assert len(found.change_sets) <= size
        sets += found.change_sets
        after = found.through
        if after == found.head:
            return sets
    raise AssertionError("the pages come to no end")


def matching(sets: list[ChangeSet], query: ChangeQuery) -> list[ChangeSet]:
    """The change sets that match a filter, computed without SQL."""
    return [
        one
        for one in sets
        if query.actor in ("", one.actor)
        and (not query.therapist_id or any(line.therapist_id == query.therapist_id for line in one.changes))
        and (not query.patient_id or any(line.patient_id == query.patient_id for line in one.changes))
    ]


def history(store: RelationshipStore) -> None:
    """Three therapists, three patients, four callers, sets of one and of many changes."""
    therapists(store, "t1", "t2", "t3")
    patients(store, "p1", "p2", "p3")
    chance = random.Random(7)
    for n in range(40):
        caller = CallContext(f"caller-{chance.randrange(3)}", "/caseload.v1.TherapistService/Test")
        pair = f"t{chance.randrange(1, 4)}", f"p{chance.randrange(1, 4)}"
        if n % 10 == 9:
            for patient_id in ("p1", "p2", "p3"):
                assign(store, "t1", patient_id)
            transfer(store, "t1", "t2", call=caller)
        elif n % 3 == 2:
            store.unassign(change_order(*pair), caller)
        else:
            store.assign(requests.Assign(*pair), caller)


def change_order(therapist_id: str, patient_id: str) -> requests.Unassign:
    return requests.Unassign(therapist_id, patient_id, allow_missing=True)


def test_pages_never_split_or_lose_a_change_set(store: RelationshipStore) -> None:
    history(store)
    whole = walk(store, 1000)
    assert [store.keys.number(one.revision) for one in whole] == list(range(1, store.head_revision() + 1))
    assert max(len(one.changes) for one in whole) > 3
    for size in (1, 2, 3, 7, len(whole) - 1, len(whole)):
        assert walk(store, size) == whole


def test_every_combination_of_filters_returns_the_matching_sets(store: RelationshipStore) -> None:
    history(store)
    whole = walk(store, 1000)
    sides = itertools.product(
        ("", "t1", "t2", "missing"), ("", "p1", "p3", "missing"), ("", "reception", "caller-1", "x")
    )
    found = 0
    for therapist_id, patient_id, actor in sides:
        query = ChangeQuery(therapist_id, patient_id, actor)
        expected = matching(whole, query)
        found += len(expected)
        for size in (2, 1000):
            assert walk(store, size, **query._asdict()) == expected, (query, size)
    assert found > 100


def test_a_filtered_page_continues_from_its_last_set_and_the_last_from_the_head(store: RelationshipStore) -> None:
    therapists(store, "t1", "t2", "t1x")
    patients(store, "p1", "p2")
    assign(store, "t1", "p1")
    assign(store, "t2", "p2")
    first = page(store, size=1, therapist_id="t1")
    assert (first.through, store.keys.number(first.head)) == (first.change_sets[0].revision, 7)
    second = page(store, first.through, size=1, therapist_id="t1")
    assert [store.keys.number(one.revision) for one in second.change_sets] == [6]
    assert second.through == second.head
    nothing = page(store, actor="missing")
    assert (nothing.change_sets, nothing.through, nothing.head) == ([], first.head, first.head)


def test_an_empty_log_has_a_head_to_start_after(store: RelationshipStore) -> None:
    empty = page(store)
    assert (empty.change_sets, empty.through, empty.oldest) == ([], empty.head, empty.head)
    therapists(store, "t1")
    assert len(page(store, empty.head).change_sets) == 1


def test_a_change_set_records_its_call(store: RelationshipStore, clock: Clock) -> None:
    now = clock.advance(1)
    call = remembered("3b241101-e2bb-4255-8caf-4136c566a962")._replace(actor="front-desk")
    outcome = store.create(THERAPIST, "t1", {"display_name": "Ann Lee"}, call)
    [one] = page(store).change_sets
    assert one[:5] == (outcome.revision, now, "front-desk", call.method, call.request_id)


def wire_bytes(found: ChangePage) -> int:
    return sum(convert.change_set(one).ByteSize() for one in found.change_sets)


def test_a_page_stops_at_2_mib_without_splitting_a_set(store: RelationshipStore) -> None:
    fill(store, sets=20, lines=2000)
    pages = [page(store)]
    while pages[-1].through != pages[-1].head:
        pages.append(page(store, pages[-1].through))
    assert len(pages) > 2
    assert [len(one.changes) for found in pages for one in found.change_sets] == [2000] * 20
    sizes = [wire_bytes(found) for found in pages]
    assert all(1 << 20 < size < 3 << 20 for size in sizes[:-1]), sizes


def test_a_page_of_a_thousand_small_sets_is_small(store: RelationshipStore) -> None:
    fill(store, sets=1000, lines=1)
    found = page(store)
    assert (len(found.change_sets), found.through) == (1000, found.head)


def test_a_set_larger_than_a_page_is_returned_whole(store: RelationshipStore) -> None:
    fill(store, sets=2, lines=10_000)
    first = page(store)
    assert [len(one.changes) for one in first.change_sets] == [10_000]
    assert [len(one.changes) for one in page(store, first.through).change_sets] == [10_000]


def test_a_revision_of_another_store_is_rejected(store: RelationshipStore) -> None:
    therapists(store, "t1")
    here = store.keys.store_id
    assert page(store, f"{here}.1").change_sets == []
    numbers = ["", "-1", "x", "1.1", " 1", "\u0661", "1e1", "1\n", "2", "9" * 18, "9" * 30]
    others = ["x", "1", ".", ".1", "\0", f"{here}", "other.1", f"{here.upper()}!.1", f" {here}.1"]
    for revision in [*others, *(f"{here}.{each}" for each in numbers)]:
        with pytest.raises(errors.RevisionForeign):
            page(store, revision)


def test_a_purged_revision_is_rejected_with_the_oldest_available_one(store: RelationshipStore, clock: Clock) -> None:
    before = page(store).head
    therapists(store, "t1", "t2")
    kept_from = clock.advance(1)
    therapists(store, "t3")
    assert store.purger.purge_changes(kept_from) == 2
    with pytest.raises(errors.RevisionPruned) as caught:
        page(store, before)
    oldest = store.keys.revision(2)
    assert caught.value.metadata == {"oldest_revision": oldest}
    assert [len(page(store, after).change_sets) for after in ("", oldest)] == [2, 2]  # and the purge
    assert page(store).oldest == oldest


def test_a_purge_keeps_a_change_at_exactly_the_given_time(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1")
    assert store.purger.purge_changes(clock.now_us) == 0
    assert store.purger.purge_changes(clock.now_us + 1) == 1


def test_the_log_continues_after_every_change_is_purged(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1", "t2")
    assert store.purger.purge_changes(clock.now_us + DAY_US) == 2
    purged = page(store)
    assert [store.keys.number(one) for one in (purged.oldest, purged.through, purged.head)] == [2, 3, 3]
    assert store.purger.purge_changes(clock.now_us) == 0
    therapists(store, "t3")
    assert [store.keys.number(one.revision) for one in page(store, purged.head).change_sets] == [4]


def test_the_oldest_revision_never_decreases(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1", "t2")
    store.purger.purge_changes(clock.now_us + 1)
    for before_us in (0, clock.now_us - DAY_US, -(10**15)):
        assert store.purger.purge_changes(before_us) == 0
        assert store.keys.number(page(store).oldest) == 2


def test_a_clock_set_back_leaves_no_gap_in_the_log(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1")
    kept_from = clock.advance(10)
    therapists(store, "t2")
    clock.advance(-20)
    therapists(store, "t3")
    assert store.purger.purge_changes(kept_from) == 1
    assert [store.keys.number(one.revision) for one in page(store).change_sets] == [2, 3, 4]


def test_change_sets_of_a_clock_that_was_ahead_are_as_old_as_later_ones(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1")
    clock.step(400 * DAY_US / 1_000_000)
    therapists(store, "t2", "t3")
    clock.step(-400 * DAY_US / 1_000_000)
    therapists(store, "t4")
    kept_from = clock.advance(10)
    therapists(store, "t5")
    assert store.purger.purge_changes(kept_from) == 4
    assert [store.keys.number(one.revision) for one in page(store).change_sets] == [5, 6]


def test_the_newest_change_sets_stay_if_the_clock_was_ahead(store: RelationshipStore, clock: Clock) -> None:
    """When they were made is not known: it may be a moment ago."""
    therapists(store, "t1")
    kept_from = clock.advance(10)
    clock.step(400 * DAY_US / 1_000_000)
    therapists(store, "t2", "t3")
    clock.step(-400 * DAY_US / 1_000_000)
    assert store.purger.purge_changes(kept_from) == 1
    assert [store.keys.number(one.revision) for one in page(store).change_sets] == [2, 3, 4]


def test_change_sets_of_a_clock_that_was_behind_erase_nothing_before_them(
    store: RelationshipStore, clock: Clock
) -> None:
    therapists(store, "t1")
    kept_from = clock.advance(10)
    therapists(store, "t2")
    clock.step(-20_000 * DAY_US / 1_000_000)
    therapists(store, "t3")
    clock.step(20_000 * DAY_US / 1_000_000)
    clock.advance(10)
    therapists(store, "t4")
    assert store.purger.purge_changes(kept_from) == 1
    assert [store.keys.number(one.revision) for one in page(store).change_sets] == [2, 3, 4, 5]


def test_a_purge_changes_neither_records_nor_replays(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1")
    patients(store, "p1")
    assign(store, "t1", "p1")
    call = remembered("1")
    moved = store.unassign(change_order("t1", "p1"), call)
    before = dump(store)
    store.purger.purge_changes(clock.now_us + 1)
    after = dump(store)
    assert all(after[table] == before[table] for table in ("therapist", "patient", "assignment", "request"))
    assert len(after["change"]) == len(after["change_set"]) == 1
    assert store.unassign(change_order("t1", "p1"), call) == moved


def test_a_purge_of_a_transferred_caseload_erases_every_change(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1", "t2")
    crowd(store, "t1", 300)
    transfer(store, "t1", "t2")
    unassign(store, "t2", "crowd-0000")
    assert store.purger.purge_changes(clock.now_us + 1) == 4
    assert run(store, "SELECT count(*) FROM change") == [(1,)]


def test_a_purge_of_changes_records_what_it_erased(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1", "t2")
    kept_from = clock.advance(1)
    therapists(store, "t3")
    now = clock.advance(1)
    store.purger.purge_changes(kept_from)
    record = page(store).change_sets[-1]
    assert (record.actor, record.method, record.request_id, record.committed_us) == ("cli:purge", "", "", now)
    oldest = store.keys.revision(2)
    assert record.changes == [Change(enums.CHANGE_LOG_PURGED, "", None, None, None, oldest)]
    assert page(store).oldest == oldest


def test_a_purge_of_changes_that_finds_none_leaves_no_record(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t1")
    before = dump(store)
    assert store.purger.purge_changes(clock.now_us) == 0
    assert dump(store) == before
