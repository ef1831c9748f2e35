-- Times are microseconds since 1970 (UTC). Enumerations are the contract's numbers. Lists and maps that callers
-- own are JSON in the record's row, so that one statement reads a record; what is searched stands in tables of its own.

CREATE TABLE store (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    store_id TEXT NOT NULL,             -- a restored copy gets another, so that old revisions are refused
    secret BLOB NOT NULL,               -- keys page tokens and request fingerprints
    head_revision INTEGER NOT NULL,     -- taken last in each write's transaction: gapless, in commit order
    oldest_revision INTEGER NOT NULL    -- changes up to this one were pruned
) STRICT;

CREATE TABLE therapist (
    therapist_id TEXT PRIMARY KEY,
    display_name TEXT NOT NULL CHECK (display_name <> ''),
    email TEXT NOT NULL,
    status INTEGER NOT NULL CHECK (status BETWEEN 1 AND 3),
    identifiers TEXT NOT NULL,          -- JSON: [[system, value], ...]
    specialties TEXT NOT NULL,          -- JSON: [code, ...]
    max_active_patients INTEGER CHECK (max_active_patients >= 0),
    annotations TEXT NOT NULL,          -- JSON: {key: value, ...}
    active_patient_count INTEGER NOT NULL DEFAULT 0 CHECK (active_patient_count >= 0),
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    deleted_us INTEGER,
    etag TEXT NOT NULL,
    CHECK (active_patient_count = 0 OR (deleted_us IS NULL AND status <> 3))
) STRICT, WITHOUT ROWID;

CREATE INDEX therapist_by_status ON therapist (status, therapist_id);
CREATE INDEX therapist_unassigned ON therapist (therapist_id) WHERE active_patient_count = 0;

CREATE TABLE patient (
    patient_id TEXT PRIMARY KEY,
    display_name TEXT NOT NULL CHECK (display_name <> ''),
    birth_date TEXT NOT NULL,           -- YYYY-MM-DD, or empty
    email TEXT NOT NULL,
    phone_number TEXT NOT NULL,
    status INTEGER NOT NULL CHECK (status BETWEEN 1 AND 2),
    identifiers TEXT NOT NULL,
    annotations TEXT NOT NULL,
    primary_therapist_id TEXT NOT NULL DEFAULT '',
    active_therapist_count INTEGER NOT NULL DEFAULT 0 CHECK (active_therapist_count >= 0),
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    deleted_us INTEGER,
    etag TEXT NOT NULL,
    CHECK (active_therapist_count = 0 OR (deleted_us IS NULL AND status <> 2))
) STRICT, WITHOUT ROWID;

CREATE INDEX patient_by_status ON patient (status, patient_id);
CREATE INDEX patient_unassigned ON patient (patient_id) WHERE active_therapist_count = 0;

-- live is 1, or NULL on a deleted record: NULLs differ from each other, so one index both finds every record
-- with an identifier and allows one live one.
CREATE TABLE therapist_identifier (
    therapist_id TEXT NOT NULL REFERENCES therapist ON DELETE CASCADE,
    system TEXT NOT NULL,
    value TEXT NOT NULL,
    live INTEGER CHECK (live = 1),
    PRIMARY KEY (therapist_id, system, value),
    UNIQUE (system, value, live)
) STRICT, WITHOUT ROWID;

CREATE TABLE patient_identifier (
    patient_id TEXT NOT NULL REFERENCES patient ON DELETE CASCADE,
    system TEXT NOT NULL,
    value TEXT NOT NULL,
    live INTEGER CHECK (live = 1),
    PRIMARY KEY (patient_id, system, value),
    UNIQUE (system, value, live)
) STRICT, WITHOUT ROWID;

-- The words of a name, without case and accents (store/search.py), a row each.
CREATE TABLE therapist_name_word (
    therapist_id TEXT NOT NULL REFERENCES therapist ON DELETE CASCADE,
    word TEXT NOT NULL,
    PRIMARY KEY (therapist_id, word)
) STRICT, WITHOUT ROWID;

CREATE INDEX therapist_name_word_by_word ON therapist_name_word (word, therapist_id);

CREATE TABLE patient_name_word (
    patient_id TEXT NOT NULL REFERENCES patient ON DELETE CASCADE,
    word TEXT NOT NULL,
    PRIMARY KEY (patient_id, word)
) STRICT, WITHOUT ROWID;

CREATE INDEX patient_name_word_by_word ON patient_name_word (word, patient_id);

CREATE TABLE therapist_specialty (
    therapist_id TEXT NOT NULL REFERENCES therapist ON DELETE CASCADE,
    specialty TEXT NOT NULL,
    PRIMARY KEY (therapist_id, specialty)
) STRICT, WITHOUT ROWID;

CREATE INDEX therapist_specialty_by_specialty ON therapist_specialty (specialty, therapist_id);

-- One period. Active until it has an end.
CREATE TABLE assignment (
    assignment_id TEXT PRIMARY KEY,
    therapist_id TEXT NOT NULL REFERENCES therapist,
    patient_id TEXT NOT NULL REFERENCES patient,
    role INTEGER NOT NULL CHECK (role BETWEEN 1 AND 4),
    focus TEXT NOT NULL,
    start_us INTEGER NOT NULL,
    end_us INTEGER CHECK (end_us >= start_us),
    end_reason INTEGER NOT NULL CHECK (end_reason BETWEEN 0 AND 7),
    created_by TEXT NOT NULL,
    ended_by TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    etag TEXT NOT NULL,
    CHECK (end_us IS NOT NULL OR (end_reason = 0 AND ended_by = ''))
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX assignment_one_active_a_pair ON assignment (patient_id, therapist_id) WHERE end_us IS NULL;
CREATE UNIQUE INDEX assignment_one_active_primary ON assignment (patient_id) WHERE end_us IS NULL AND role = 1;
-- Of two indexes that serve equally SQLite takes the one made last: the one of active periods, where it can.
CREATE INDEX assignment_by_therapist ON assignment (therapist_id, assignment_id);
CREATE INDEX assignment_active_by_therapist ON assignment (therapist_id, assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_active ON assignment (assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_by_patient ON assignment (patient_id, assignment_id);
CREATE INDEX assignment_by_pair ON assignment (patient_id, therapist_id, start_us);

-- What changed, by whom: ids and names of fields, never a value.
CREATE TABLE change_set (
    revision INTEGER PRIMARY KEY,
    committed_us INTEGER NOT NULL,
    actor TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id TEXT NOT NULL
) STRICT;

CREATE INDEX change_set_by_actor ON change_set (actor, revision);

CREATE TABLE change (
    revision INTEGER NOT NULL REFERENCES change_set,
    position INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 5),
    changed_fields TEXT NOT NULL,       -- names, comma between
    therapist_id TEXT,                  -- of a therapist, or of the assignment
    patient_id TEXT,                    -- of a patient, or of the assignment
    assignment_id TEXT,
    PRIMARY KEY (revision, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX change_by_therapist ON change (therapist_id, revision) WHERE therapist_id IS NOT NULL;
CREATE INDEX change_by_patient ON change (patient_id, revision) WHERE patient_id IS NOT NULL;

-- What a repeated request_id is answered with, for 24 hours.
CREATE TABLE request (
    actor TEXT NOT NULL,
    request_id TEXT NOT NULL,
    method TEXT NOT NULL,
    fingerprint BLOB NOT NULL,          -- keyed hash of the request
    record_ids TEXT NOT NULL,           -- what it answered about, a space between; empty where there was nothing
    effect INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    PRIMARY KEY (actor, request_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX request_by_age ON request (created_us);
