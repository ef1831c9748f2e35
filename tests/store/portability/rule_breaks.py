"""SQL that breaks each rule of verify."""


def copied(table: str, changed: str, where: str = "1 = 1") -> str:
    """SQL that inserts copies of rows with changed values. Args: changed, "column=value, ..."."""
    columns = {
        "assignment": "assignment_id, therapist_id, patient_id, role, focus, start_us, end_us, end_reason, created_by,"
        " ended_by, created_us, updated_us, etag",
        "change": "revision, position, kind, changed_fields, therapist_id, patient_id, assignment_id",
        "request": "actor, request_id, method, fingerprint, record_ids, effect, revision, created_us",
    }[table]
    values = columns
    for column, _, value in (one.partition("=") for one in changed.split(", ")):
        values = f", {values},".replace(f", {column},", f", {value},").strip(", ")
    return f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table} WHERE {where}"


ACTIVE_P = "patient_id = 'p' AND therapist_id = 't'"
BREAKS: list[tuple[str, list[str], list[str]]] = [
    (
        "active_patient_count is the number of active assignments",
        ["UPDATE therapist SET active_patient_count = 7 WHERE therapist_id = 't'"],
        ["t"],
    ),
    (
        "active_therapist_count is the number of active assignments",
        ["UPDATE patient SET active_therapist_count = active_therapist_count + 1"],
        ["p", "q"],
    ),
    (
        "a deleted or inactive therapist has no active assignment",
        ["UPDATE therapist SET active_patient_count = 0, deleted_us = 1 WHERE therapist_id = 't'"],
        ["t"],
    ),
    (
        "a deleted or inactive therapist has no active assignment",
        ["UPDATE therapist SET active_patient_count = 0, status = 3 WHERE therapist_id = 't'"],
        ["t"],
    ),
    (
        "a deleted or discharged patient has no active assignment",
        ["UPDATE patient SET active_therapist_count = 0, deleted_us = 1 WHERE patient_id = 'p'"],
        ["p"],
    ),
    (
        "a deleted or discharged patient has no active assignment",
        ["UPDATE patient SET active_therapist_count = 0, status = 2 WHERE patient_id = 'p'"],
        ["p"],
    ),
    *(
        (
            f"an identifier belongs to one {kind} that is not deleted",
            [f"UPDATE {kind}_identifier SET value = 'A-1'"],
            [first],
        )
        for kind, first in (("therapist", "t"), ("patient", "p"))
    ),
    *(
        (
            f"the key of an identifier belongs to one {kind} that is not deleted",
            [f"UPDATE {kind}_identifier SET value_key = 'A', holds_key = CASE {kind}_id WHEN '{second}' THEN 1 END"],
            [first],
        )
        for kind, first, second in (("therapist", "t", "u"), ("patient", "p", "q"))
    ),
    *(
        (
            f"each {kind} has current words and keys: caseload migrate makes them",
            [f"UPDATE {kind} SET keyed_etag = '1:' || etag WHERE {kind}_id = '{first}'"],
            [first],
        )
        for kind, first in (("therapist", "t"), ("patient", "p"))
    ),
    (
        "the id of a purged therapist is not in use",
        ["INSERT INTO purged (kind, record_id) VALUES ('therapist', 't'), ('patient', 't')"],
        ["t"],
    ),
    (
        "the id of a purged patient is not in use",
        ["INSERT INTO purged (kind, record_id) VALUES ('therapist', 'q'), ('patient', 'q')"],
        ["q"],
    ),
    (
        "primary_therapist_id is the therapist of the active PRIMARY assignment",
        ["UPDATE patient SET primary_therapist_id = 'u' WHERE patient_id = 'p'"],
        ["p"],
    ),
    (
        "primary_therapist_id is the therapist of the active PRIMARY assignment",
        ["UPDATE patient SET primary_therapist_id = '' WHERE patient_id = 'q'"],
        ["q"],
    ),
    (
        "a pair has at most one active assignment",
        [copied("assignment", "assignment_id='0', role=3", ACTIVE_P)],
        ["0"],
    ),
    (
        "a patient has at most one active PRIMARY assignment",
        ["UPDATE assignment SET assignment_id = '0', role = 1 WHERE patient_id = 'p' AND therapist_id = 'u'"],
        ["0"],
    ),
    (
        "the planned end of an active assignment is not before its start",
        [f"UPDATE assignment SET expire_us = start_us - 1 WHERE {ACTIVE_P}"],
        [],
    ),
    (
        "an assignment that expired had a planned end",
        ["UPDATE assignment SET end_reason = 9 WHERE end_us = 2000"],
        [],
    ),
    (
        "the periods of a pair do not overlap",
        [copied("assignment", "assignment_id='z', start_us=1999, end_us=2001", "end_us = 2000")],
        ["z"],
    ),
    (
        "the PRIMARY periods of a patient do not overlap",
        [copied("assignment", "assignment_id='z', role=1, start_us=1, end_us=3000", "end_us = 2000")],
        [],
    ),
    (
        "a merged patient is deleted",
        ["UPDATE patient SET merged_into_patient_id = 'q' WHERE patient_id = 'p'"],
        ["p"],
    ),
    (
        "each merged_into_patient_id leads to a patient that is not merged",
        ["UPDATE patient SET merged_into_patient_id = 'missing' WHERE patient_id = 'p'"],
        ["p"],
    ),
    (
        "each merged_into_patient_id leads to a patient that is not merged",
        ["UPDATE patient SET merged_into_patient_id = CASE patient_id WHEN 'p' THEN 'q' ELSE 'p' END"],
        ["p", "q"],
    ),
    (
        "same_person has the patients that merges join",
        ["UPDATE patient SET merged_into_patient_id = 'q' WHERE patient_id = 'p'"],
        ["p", "q"],
    ),
    (
        "same_person has the patients that merges join",
        ["INSERT INTO same_person (patient_id, person_id) VALUES ('p', 'q')"],
        ["p"],
    ),
    ("the table store has one row", ["DELETE FROM store"], ["0"]),
    (
        "the change log has every revision from the oldest to the head",
        ["DELETE FROM change WHERE revision IN (1, 4, 11)", "DELETE FROM change_set WHERE revision IN (1, 4, 11)"],
        ["1", "4", "11"],
    ),
    (
        "no revision is newer than the head, or was purged",
        ["UPDATE store SET head_revision = 11, oldest_revision = 1"],
        ["1", "12", "12"],
    ),
    ("each change set has changes", ["DELETE FROM change WHERE revision = 3"], ["3"]),
    ("each revision in change exists in change_set", [copied("change", "revision=99", "revision = 3")], ["99"]),
    (
        "each therapist_id in assignment exists in therapist",
        ["UPDATE assignment SET therapist_id = 'missing' WHERE therapist_id = 'u' AND patient_id = 'p'"],
        ["missing"],
    ),
    (
        "each patient_id in assignment exists in patient",
        ["UPDATE assignment SET patient_id = 'missing' WHERE therapist_id = 'u' AND patient_id = 'p'"],
        ["missing"],
    ),
    *(
        (
            f"each {kind}_id in {kind}_{table} exists in {kind}",
            [f"UPDATE {kind}_{table} SET {kind}_id = 'missing'"],
            ["missing", "missing"][: 1 if table == "specialty" else 2],
        )
        for kind in ("therapist", "patient")
        for table in ("identifier", "specialty")
        if (kind, table) != ("patient", "specialty")
    ),
    *(
        (
            f"each {kind}_id in {kind}_name_word exists in {kind}",
            [f"UPDATE {kind}_name_word SET {kind}_id = 'missing' WHERE {kind}_id = '{one}' AND word = 'ada'"],
            ["missing"],
        )
        for kind, one in (("therapist", "t"), ("patient", "p"))
    ),
]
