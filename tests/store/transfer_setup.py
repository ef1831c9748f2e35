"""What the tests of transfers prepare and look at."""

from collections.abc import Callable

from caseload_server.domain.requests import Update
from caseload_server.store import THERAPIST, RelationshipStore

from tests.store.store_builders import CALL

SUPERVISING, COVERING = 3, 4
ON_LEAVE, INACTIVE = 2, 3
ID = "3b241101-e2bb-4255-8caf-4136c566a962"
Prepare = Callable[[RelationshipStore], object]


def count(store: RelationshipStore, therapist_id: str) -> int:
    return store.get(THERAPIST, therapist_id).active_patient_count


def update(therapist_id: str, **fields: int) -> Prepare:
    return lambda store: store.update(THERAPIST, Update(therapist_id, dict(fields)), CALL)
