"""Measures the storage that the versions of records take.

python -m benchmarks.version_storage DATABASE

DATABASE is the URL of an empty, migrated database, or of a SQLite file that does not exist. Each of 1,000 patients is
updated 10 times, and each of 1,000 assignments is ended. The output has the bytes for each change, with all indexes.
"""

import sys
from contextlib import closing
from typing import Final

from caseload_server.clock import now_us
from caseload_server.config import Config
from caseload_server.domain.requests import Assign, CallContext, Fields, Unassign, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.protocol import Transaction

_CALL: Final = CallContext(actor="benchmark", method="/caseload.v1.PatientService/UpdatePatient")
_PATIENTS: Final = 1000
_UPDATES: Final = 10


def main() -> None:
    """Prints the bytes of each version."""
    with closing(open_store(Config(database=sys.argv[1]), now_us)) as store:
        _change(store)
        is_file = sys.argv[1].startswith("sqlite:")
        with store._database.snapshot() as transaction:
            for table in ("patient_version", "assignment_version"):
                [(count,)] = transaction.run(f"SELECT COUNT(*) FROM {table}")  # noqa: S608 - a constant
                size = _bytes_of(transaction, table, is_file=is_file)
                print(f"{table}: {count} versions, {size / count:.0f} bytes each")


def _change(store: RelationshipStore) -> None:
    store.create(THERAPIST, "t", {"display_name": "Ada Lovelace"}, _CALL)
    for number in range(_PATIENTS):
        patient_id = f"p{number}"
        identifiers = f'[["https://example.org/mrn","{number:08}"]]'
        fields: Fields = {"display_name": "Jane Miller", "birth_date": "1990-02-03", "identifiers": identifiers}
        store.create(PATIENT, patient_id, fields, _CALL)
        for update in range(_UPDATES):
            store.update(PATIENT, Update(patient_id, {"phone_number": f"+4930123{update:03}"}), _CALL)
        store.assign(Assign("t", patient_id), _CALL)
        store.unassign(Unassign("t", patient_id), _CALL)


def _bytes_of(transaction: Transaction, table: str, *, is_file: bool) -> int:
    if is_file:
        sql = f"SELECT SUM(pgsize) FROM dbstat WHERE name = '{table}' OR name LIKE '{table}_by_%'"  # noqa: S608 - a constant
    else:
        sql = f"SELECT pg_total_relation_size('{table}')"
    return int(transaction.run(sql)[0][0])


if __name__ == "__main__":
    main()
