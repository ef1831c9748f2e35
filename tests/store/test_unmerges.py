"""UnmergePatients separates two records again."""

import pytest
from caseload_server.domain import errors
from caseload_server.domain.results import UnmergeResult
from caseload_server.store import PATIENT, RelationshipStore

from tests.store.merge_setup import REQUEST_ID, identifiers, merge, unmerge, with_identifiers
from tests.store.store_builders import assert_consistent
from tests.store.store_calls import CALL, assign, delete, dump, history, ids, make, request, run, update


def test_an_unmerge_returns_the_identifiers_and_leaves_the_assignments(people: RelationshipStore) -> None:
    assign(people, "t", "s")
    [active] = merge(people).active
    update(people, PATIENT, "p", identifiers=with_identifiers("2", "9", "3"))
    before = people.get(PATIENT, "p")
    result = unmerge(people)
    assert (result.source.deleted_us, result.source.merged_into_patient_id) == (None, "")
    assert identifiers(result.source) == ["1", "2"]
    assert result.target is not None
    assert identifiers(result.target) == ["9", "3"]
    assert result.target.aliases == before.aliases == '["Bob Gray"]'
    assert history(people, "p") == [active]
    assert [ids(people, PATIENT, identifier=("mrn", one)) for one in "1239"] == [["s"], ["s"], ["p"], ["p"]]
    assert run(people, "SELECT * FROM same_person") == []
    assert_consistent(people)


def test_an_unmerge_from_a_deleted_target_takes_the_identifiers_back(people: RelationshipStore) -> None:
    merge(people)
    delete(people, PATIENT, "p")
    result = unmerge(people)
    assert result.target is not None
    assert (identifiers(result.source), identifiers(result.target)) == (["1", "2"], ["3"])
    people.undelete(PATIENT, "p", CALL)


def test_an_unmerge_fails_while_another_patient_has_an_identifier(people: RelationshipStore) -> None:
    merge(people)
    update(people, PATIENT, "p", identifiers="[]")
    make(people, PATIENT, "q", identifiers=with_identifiers("2"))
    before = dump(people)
    with pytest.raises(errors.IdentifierTaken):
        unmerge(people)
    assert dump(people) == before


def test_an_unmerge_of_a_record_that_is_not_merged_changes_nothing(people: RelationshipStore) -> None:
    before = dump(people)
    assert unmerge(people)[:2] == (people.get(PATIENT, "s"), None)
    assert dump(people) == before
    with pytest.raises(errors.PatientNotFound):
        unmerge(people, "missing")


def test_a_record_can_be_merged_again_after_an_unmerge(people: RelationshipStore) -> None:
    first = merge(people)
    unmerge(people)
    second = merge(people)
    assert second.target == first.target._replace(updated_us=second.target.updated_us, etag=second.target.etag)
    unmerge(people)
    merge(people, "p", "s")
    assert identifiers(people.get(PATIENT, "s")) == ["1", "2", "3"]


def test_a_replayed_unmerge_returns_the_current_records(people: RelationshipStore) -> None:
    merge(people)
    first = unmerge(people, call=request(REQUEST_ID))
    merge(people)
    again = unmerge(people, call=request(REQUEST_ID))
    assert again == UnmergeResult(people.get(PATIENT, "s"), people.get(PATIENT, "p"), first.revision)
    assert again.source.merged_into_patient_id == "p"
