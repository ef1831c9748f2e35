-- alone: an older instance would answer that an expired assignment is in force.
-- Planned ends of assignments, merged patients, and other names of people.
ALTER TABLE therapist ADD COLUMN aliases TEXT NOT NULL DEFAULT '[]';    -- JSON: [name, ...]
ALTER TABLE patient ADD COLUMN aliases TEXT NOT NULL DEFAULT '[]';      -- JSON: [name, ...]
ALTER TABLE patient ADD COLUMN merged_into_patient_id TEXT NOT NULL DEFAULT '';
CREATE INDEX patient_by_merge ON patient (merged_into_patient_id, patient_id) WHERE merged_into_patient_id <> '';
-- A purge skips merged patients: they are purged with the record into which they were merged.
DROP INDEX patient_by_deletion;
CREATE INDEX patient_by_deletion ON patient (deleted_us, patient_id)
    WHERE deleted_us IS NOT NULL AND merged_into_patient_id = '';

-- The records of a person that MergePatients joined, person_id included, which is the one that is not merged. Derived
-- from merged_into_patient_id, so that no check follows a chain of merges. Other patients have no row.
CREATE TABLE same_person (
    patient_id TEXT PRIMARY KEY REFERENCES patient ON DELETE CASCADE,
    person_id TEXT NOT NULL REFERENCES patient ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX same_person_by_person ON same_person (person_id, patient_id);

-- The table again, because SQLite cannot change the CHECK of an existing one. It has new end reasons and a planned end.
CREATE TABLE expiring_assignment (
    assignment_id TEXT PRIMARY KEY,
    therapist_id TEXT NOT NULL REFERENCES therapist,
    patient_id TEXT NOT NULL REFERENCES patient,
    role INTEGER NOT NULL CHECK (role BETWEEN 1 AND 4),
    focus TEXT NOT NULL,
    start_us INTEGER NOT NULL,
    end_us INTEGER CHECK (end_us >= start_us),
    end_reason INTEGER NOT NULL CHECK (end_reason >= 0),
    created_by TEXT NOT NULL,
    ended_by TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    etag TEXT NOT NULL,
    expire_us INTEGER,                                                  -- the planned end
    CHECK (end_us IS NOT NULL OR (end_reason = 0 AND ended_by = '')),
    CHECK (end_us IS NOT NULL OR expire_us >= start_us)
) STRICT, WITHOUT ROWID;
INSERT INTO expiring_assignment SELECT *, NULL FROM assignment;
DROP TABLE assignment;
ALTER TABLE expiring_assignment RENAME TO assignment;

-- All its indexes. Of two that serve equally SQLite takes the one made last: the one of active periods, where it can.
CREATE UNIQUE INDEX assignment_one_active_a_pair ON assignment (patient_id, therapist_id) WHERE end_us IS NULL;
CREATE UNIQUE INDEX assignment_one_active_primary ON assignment (patient_id) WHERE end_us IS NULL AND role = 1;
CREATE INDEX assignment_active_by_therapist ON assignment (therapist_id, assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_by_patient ON assignment (patient_id, assignment_id);
CREATE INDEX assignment_by_pair ON assignment (patient_id, therapist_id, start_us);
CREATE INDEX assignment_active_by_role ON assignment (role, assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_by_end ON assignment (end_us, start_us, assignment_id) WHERE end_us IS NOT NULL;
CREATE INDEX assignment_active ON assignment (assignment_id, start_us, role, expire_us) WHERE end_us IS NULL;
CREATE INDEX assignment_by_therapist
    ON assignment (therapist_id, assignment_id, start_us, end_us, end_reason, role, expire_us);
CREATE INDEX assignment_ended_by_id ON assignment (assignment_id) WHERE end_us IS NOT NULL;
CREATE INDEX assignment_ended_by_role ON assignment (role, assignment_id) WHERE end_us IS NOT NULL;
CREATE INDEX assignment_expiring ON assignment (expire_us, assignment_id)
    WHERE expire_us IS NOT NULL AND end_us IS NULL;
