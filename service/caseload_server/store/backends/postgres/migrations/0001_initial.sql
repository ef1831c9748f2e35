-- The tables of ../sqlite/, for PostgreSQL. Text is compared by bytes, or pages would differ between the two.
-- Times are microseconds since 1970 (UTC). Enumerations are the contract's numbers. Lists and maps that callers
-- own are JSON in the record's row, so that one statement reads a record; what is searched stands in tables of its own.

CREATE TABLE store (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    store_id TEXT COLLATE "C" NOT NULL,             -- a restored copy gets another, so that old revisions are refused
    secret BYTEA NOT NULL,                          -- keys page tokens and request fingerprints
    head_revision BIGINT NOT NULL,                  -- taken last in each write's transaction: gapless, in commit order
    oldest_revision BIGINT NOT NULL    -- changes up to this one were pruned
);

CREATE TABLE therapist (
    therapist_id TEXT COLLATE "C" PRIMARY KEY,
    display_name TEXT COLLATE "C" NOT NULL CHECK (display_name <> ''),
    email TEXT COLLATE "C" NOT NULL,
    status BIGINT NOT NULL CHECK (status BETWEEN 1 AND 3),
    identifiers TEXT COLLATE "C" NOT NULL,          -- JSON: [[system, value], ...]
    specialties TEXT COLLATE "C" NOT NULL,          -- JSON: [code, ...]
    max_active_patients BIGINT CHECK (max_active_patients >= 0),
    annotations TEXT COLLATE "C" NOT NULL,          -- JSON: {key: value, ...}
    active_patient_count BIGINT NOT NULL DEFAULT 0 CHECK (active_patient_count >= 0),
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    deleted_us BIGINT,
    etag TEXT COLLATE "C" NOT NULL,
    CHECK (active_patient_count = 0 OR (deleted_us IS NULL AND status <> 3))
);

CREATE INDEX therapist_by_status ON therapist (status, therapist_id);
CREATE INDEX therapist_unassigned ON therapist (therapist_id) WHERE active_patient_count = 0;

CREATE TABLE patient (
    patient_id TEXT COLLATE "C" PRIMARY KEY,
    display_name TEXT COLLATE "C" NOT NULL CHECK (display_name <> ''),
    birth_date TEXT COLLATE "C" NOT NULL,           -- YYYY-MM-DD, or empty
    email TEXT COLLATE "C" NOT NULL,
    phone_number TEXT COLLATE "C" NOT NULL,
    status BIGINT NOT NULL CHECK (status BETWEEN 1 AND 2),
    identifiers TEXT COLLATE "C" NOT NULL,
    annotations TEXT COLLATE "C" NOT NULL,
    primary_therapist_id TEXT COLLATE "C" NOT NULL DEFAULT '',
    active_therapist_count BIGINT NOT NULL DEFAULT 0 CHECK (active_therapist_count >= 0),
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    deleted_us BIGINT,
    etag TEXT COLLATE "C" NOT NULL,
    CHECK (active_therapist_count = 0 OR (deleted_us IS NULL AND status <> 2))
);

CREATE INDEX patient_by_status ON patient (status, patient_id);
CREATE INDEX patient_unassigned ON patient (patient_id) WHERE active_therapist_count = 0;

-- live is 1, or NULL on a deleted record: NULLs differ from each other, so one index both finds every record
-- with an identifier and allows one live one.
CREATE TABLE therapist_identifier (
    therapist_id TEXT COLLATE "C" NOT NULL REFERENCES therapist ON DELETE CASCADE,
    system TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    live BIGINT CHECK (live = 1),
    PRIMARY KEY (therapist_id, system, value),
    UNIQUE (system, value, live)
);

CREATE TABLE patient_identifier (
    patient_id TEXT COLLATE "C" NOT NULL REFERENCES patient ON DELETE CASCADE,
    system TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    live BIGINT CHECK (live = 1),
    PRIMARY KEY (patient_id, system, value),
    UNIQUE (system, value, live)
);

-- The words of a name, without case and accents (store/search.py), a row each.
CREATE TABLE therapist_name_word (
    therapist_id TEXT COLLATE "C" NOT NULL REFERENCES therapist ON DELETE CASCADE,
    word TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (therapist_id, word)
);

CREATE INDEX therapist_name_word_by_word ON therapist_name_word (word, therapist_id);

CREATE TABLE patient_name_word (
    patient_id TEXT COLLATE "C" NOT NULL REFERENCES patient ON DELETE CASCADE,
    word TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (patient_id, word)
);

CREATE INDEX patient_name_word_by_word ON patient_name_word (word, patient_id);

CREATE TABLE therapist_specialty (
    therapist_id TEXT COLLATE "C" NOT NULL REFERENCES therapist ON DELETE CASCADE,
    specialty TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (therapist_id, specialty)
);

CREATE INDEX therapist_specialty_by_specialty ON therapist_specialty (specialty, therapist_id);

-- One period. Active until it has an end.
CREATE TABLE assignment (
    assignment_id TEXT COLLATE "C" PRIMARY KEY,
    therapist_id TEXT COLLATE "C" NOT NULL REFERENCES therapist,
    patient_id TEXT COLLATE "C" NOT NULL REFERENCES patient,
    role BIGINT NOT NULL CHECK (role BETWEEN 1 AND 4),
    focus TEXT COLLATE "C" NOT NULL,
    start_us BIGINT NOT NULL,
    end_us BIGINT CHECK (end_us >= start_us),
    end_reason BIGINT NOT NULL CHECK (end_reason BETWEEN 0 AND 7),
    created_by TEXT COLLATE "C" NOT NULL,
    ended_by TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    etag TEXT COLLATE "C" NOT NULL,
    CHECK (end_us IS NOT NULL OR (end_reason = 0 AND ended_by = ''))
);

CREATE UNIQUE INDEX assignment_one_active_a_pair ON assignment (patient_id, therapist_id) WHERE end_us IS NULL;
CREATE UNIQUE INDEX assignment_one_active_primary ON assignment (patient_id) WHERE end_us IS NULL AND role = 1;
CREATE INDEX assignment_by_therapist ON assignment (therapist_id, assignment_id);
CREATE INDEX assignment_active_by_therapist ON assignment (therapist_id, assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_active ON assignment (assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_by_patient ON assignment (patient_id, assignment_id);
CREATE INDEX assignment_by_pair ON assignment (patient_id, therapist_id, start_us);

-- What changed, by whom: ids and names of fields, never a value.
CREATE TABLE change_set (
    revision BIGINT PRIMARY KEY,
    committed_us BIGINT NOT NULL,
    actor TEXT COLLATE "C" NOT NULL,
    method TEXT COLLATE "C" NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL
);

CREATE INDEX change_set_by_actor ON change_set (actor, revision);

CREATE TABLE change (
    revision BIGINT NOT NULL REFERENCES change_set,
    position BIGINT NOT NULL,
    kind BIGINT NOT NULL CHECK (kind BETWEEN 1 AND 5),
    changed_fields TEXT COLLATE "C" NOT NULL,       -- names, comma between
    therapist_id TEXT COLLATE "C",                  -- of a therapist, or of the assignment
    patient_id TEXT COLLATE "C",                    -- of a patient, or of the assignment
    assignment_id TEXT COLLATE "C",
    PRIMARY KEY (revision, position)
);

CREATE INDEX change_by_therapist ON change (therapist_id, revision) WHERE therapist_id IS NOT NULL;
CREATE INDEX change_by_patient ON change (patient_id, revision) WHERE patient_id IS NOT NULL;

-- What a repeated request_id is answered with, for 24 hours.
CREATE TABLE request (
    actor TEXT COLLATE "C" NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL,
    method TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA NOT NULL,                     -- keyed hash of the request
    record_ids TEXT COLLATE "C" NOT NULL,           -- what it answered about, a space between; empty where there was nothing
    effect BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    PRIMARY KEY (actor, request_id)
);

CREATE INDEX request_by_age ON request (created_us);

-- Wakes the watches of every instance when the transaction commits. Nothing is in it: they read the change log.
CREATE FUNCTION tell_of_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('caseload_revision', '');
    RETURN NULL;
END $$;

CREATE TRIGGER store_tells_of_revision AFTER UPDATE OF head_revision ON store
FOR EACH ROW EXECUTE FUNCTION tell_of_revision();

-- What SQLite's json_each is for lists: the place, the item as JSON, and as text.
CREATE FUNCTION json_each(list TEXT) RETURNS TABLE (key BIGINT, value JSON, atom TEXT) LANGUAGE sql IMMUTABLE ROWS 100 AS $$
    SELECT item.ordinality - 1, item.value, item.value #>> '{}'
    FROM json_array_elements(list::JSON) WITH ORDINALITY AS item
$$;
