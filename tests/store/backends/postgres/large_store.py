"""A store whose statistics are those of 3,000,000 assignments: a fiftieth of the rows, counted fifty times."""

from typing import Any, Final

import psycopg

_FACTOR: Final = 50
_NAMES: Final = """
INSERT INTO {kind}_name_word
SELECT {kind}_id, lower(word) FROM {kind}, unnest(string_to_array(display_name, ' ')) AS word"""
_IDENTIFIERS: Final = """
INSERT INTO {kind}_identifier
SELECT {kind}_id, 'number', substr({kind}_id, 2), 1, substr({kind}_id, 2), 1 FROM {kind}"""
_FILL: Final = (
    # Most words are common prefixes: first1 to first500, last1 to last2000. One in 44 is called Anna, one in 21 Smith.
    """
CREATE FUNCTION full_name(n BIGINT) RETURNS TEXT LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN n % 44 = 0 THEN 'Anna' ELSE 'First' || n * 7919 % 500 END
        || ' ' || CASE WHEN n % 21 = 0 THEN 'Smith' ELSE 'Last' || n * 104729 % 2000 END $$""",
    """
INSERT INTO therapist
SELECT 't' || lpad(n::TEXT, 8, '0'), full_name(n), '', CASE WHEN n % 30 = 0 THEN 3 WHEN n % 13 = 0 THEN 2 ELSE 1 END,
    '[]', '[]', 400, '{}', CASE WHEN n % 30 = 0 THEN 0 ELSE 50 END, 0, n, NULL, 'e', '[]', lower(full_name(n)),
    n || '@example.org', '2:e'
FROM generate_series(1, 400) AS n""",
    """
INSERT INTO patient
SELECT 'p' || lpad(n::TEXT, 8, '0'), full_name(n), to_char(DATE '1930-01-01' + n * 37 % 30000, 'YYYY-MM-DD'), '',
    '+49' || n / 2, CASE WHEN n % 10 = 0 THEN 2 ELSE 1 END, '[]', '{}', CASE WHEN n % 10 = 0 THEN '' ELSE 't' END,
    CASE WHEN n % 10 = 0 THEN 0 ELSE 1 END, 0, n * 7919 % 20000, CASE WHEN n % 100 = 50 THEN 1 END, 'e', '[]', '',
    lower(full_name(n)), n || '@example.org', '2:e'
FROM generate_series(1, 20000) AS n""",
    *(text.format(kind=kind) for text in (_NAMES, _IDENTIFIERS) for kind in ("therapist", "patient")),
    """
INSERT INTO therapist_specialty
SELECT therapist_id, specialty FROM therapist, CAST(substr(therapist_id, 2) AS BIGINT) AS n,
    unnest(ARRAY['rare' || n % 40, 'common' || n % 3]) AS specialty""",
    # Three periods of each patient, one day a number: the last one of most patients is active.
    """
INSERT INTO assignment
SELECT 'a' || lpad((day * 20000 + n)::TEXT, 12, '0'), 't' || lpad((1 + n * 31 % 400)::TEXT, 8, '0'),
    'p' || lpad(n::TEXT, 8, '0'),
    CASE WHEN n % 20 = 0 THEN 3 WHEN n % 50 = 1 THEN 4 WHEN n % 2 = 0 THEN 1 ELSE 2 END, '',
    day * 1000, CASE WHEN is_last AND n % 10 > 0 THEN NULL ELSE day * 1000 + 100000 END,
    CASE WHEN is_last AND n % 10 > 0 THEN 0 ELSE 1 END, '', '', 0, 0, 'e'
FROM generate_series(1, 20000) AS n, generate_series(0, 2) AS nth,
    LATERAL (SELECT nth * 1000 + n * 7919 % 1000 AS day, nth = 2 AS is_last) AS period""",
    # One in 50 active periods has a planned end.
    """
UPDATE assignment SET expire_us = start_us + 3000000 WHERE end_us IS NULL AND right(patient_id, 2) IN ('11', '61')""",
    """
INSERT INTO change_set SELECT n, n, CASE WHEN n % 1000 = 0 THEN 'auditor' ELSE 'reception' END, 'm', '',
    CASE WHEN n % 100 = 0 THEN 'user-' || n % 7 ELSE '' END, 1, ''
FROM generate_series(1, 20000) AS n""",
    """
INSERT INTO change SELECT n, 0, 1, '', NULL, 'p' || lpad(n::TEXT, 8, '0'), NULL, NULL, NULL
FROM generate_series(1, 20000) AS n""",
    # One patient in a hundred is another record of the one before.
    """
UPDATE patient SET merged_into_patient_id = 'p' || lpad((CAST(substr(patient_id, 2) AS BIGINT) - 1)::TEXT, 8, '0')
WHERE CAST(substr(patient_id, 2) AS BIGINT) % 100 = 1 AND patient_id > 'p00000001'""",
    """
INSERT INTO same_person SELECT 'p' || lpad((n + own)::TEXT, 8, '0'), 'p' || lpad(n::TEXT, 8, '0')
FROM generate_series(100, 19900, 100) AS n, generate_series(0, 1) AS own""",
    # Each person and each period that ended has changed once.
    *(
        f"INSERT INTO {kind}_version SELECT {kind}_id, 5, 5, {merged} '{{}}' FROM {kind}"
        for kind, merged in (("therapist", ""), ("patient", "merged_into_patient_id,"))
    ),
    """
INSERT INTO assignment_version
SELECT assignment_id, 5, 5, therapist_id, patient_id, role, '', start_us, NULL, 0, '', '', 0, 0, 'e', NULL
FROM assignment WHERE end_us IS NOT NULL""",
    "UPDATE store SET head_revision = 20000",
    "VACUUM ANALYZE",
    # The planner multiplies its count of pages by these rows a page.
    f"""
UPDATE pg_class SET reltuples = reltuples * {_FACTOR}
WHERE relnamespace = 'public'::regnamespace AND reltuples > 0""",
)


def fill(connection: "psycopg.Connection[Any]") -> None:
    """Fills an empty, migrated database. Args: connection, of a superuser, in autocommit mode."""
    connection.execute("SET session_replication_role = replica")  # without checks of foreign keys
    for statement in _FILL:
        connection.execute(statement.encode())
    connection.execute("RESET session_replication_role")
