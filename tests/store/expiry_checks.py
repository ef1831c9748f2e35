"""Checks of expired assignments, for tests."""

from caseload_server.domain import enums
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import ChangeQuery
from caseload_server.store import RelationshipStore

from tests.store.store_builders import SECOND, assert_consistent

HOUR = 3600 * SECOND


def expiries(store: RelationshipStore) -> list[str]:
    """The ids of the assignments that expired, by the change log: one for each change set of an expiry."""
    page = store.list_changes(ChangeQuery(actor="system:expiry"), "", 1000)
    ids = []
    for change_set in page.change_sets:
        [change] = change_set.changes
        assert change_set.method == change_set.request_id == change_set.on_behalf_of == ""
        assert (change.kind, change.changed_fields) == (enums.CHANGE_UPDATED, "state,end_time,end_reason,ended_by")
        ids.append(change.assignment_id or "")
    return ids


def assert_expired(store: RelationshipStore, begun: Assignment, now_us: int) -> None:
    """Asserts that an assignment ended as planned, in one change set, and that counts and primary therapists follow."""
    ended = store.get_assignment(begun.assignment_id)
    assert ended.etag != begun.etag
    assert ended == begun._replace(
        end_us=begun.expire_us,
        end_reason=enums.END_EXPIRED,
        ended_by="system:expiry",
        updated_us=now_us,
        etag=ended.etag,
    )
    assert expiries(store).count(begun.assignment_id) == 1
    assert_consistent(store)
