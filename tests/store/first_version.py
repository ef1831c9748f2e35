"""Rows as the first version of the schema has them, on either database."""

from typing import Final

WRITES: Final = (
    (
        "INSERT INTO patient VALUES ('kept', 'Ada', '', '', '', 1, '[]', '{}', '', 0, 1, 1, NULL, 'e'),"
        " ('gone', 'Ada', '', '', '', 1, '[]', '{}', '', 0, 1, 1, 1, 'e')"
    ),
    (
        "INSERT INTO change_set (revision, committed_us, actor, method, request_id)"
        " VALUES (1, 1, 'a', 'm', ''), (2, 1, 'a', 'm', '')"
    ),
    "INSERT INTO change VALUES (1, 0, 1, '', NULL, 'kept', NULL), (2, 0, 1, '', NULL, 'gone', NULL)",
    "UPDATE store SET head_revision = 2",
)
"""Statements that the first version ran: a live patient and a deleted one, each with its change set."""
PRUNED: Final = (
    "DELETE FROM change",
    "DELETE FROM change_set",
    "UPDATE store SET oldest_revision = 2",
    "UPDATE patient SET updated_us = 7 WHERE patient_id = 'kept'",
)
"""Statements after which a log that the first version pruned no longer has the time of the latest change."""
COLUMNS: Final = {
    "store": "store_id, secret, head_revision, oldest_revision",
    "patient": (
        "patient_id, display_name, birth_date, email, phone_number, status, identifiers, annotations,"
        " primary_therapist_id, active_therapist_count, created_us, updated_us, deleted_us, etag"
    ),
    "change_set": "revision, committed_us, actor, method, request_id",
    "change": "revision, position, kind, changed_fields, therapist_id, patient_id, assignment_id",
}
"""The columns of the first version by table. A migration must not change them."""
