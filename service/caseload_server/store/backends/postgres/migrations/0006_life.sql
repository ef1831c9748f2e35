-- alone: an older instance would answer that an expired assignment is in force.
-- Planned ends of assignments, merged patients, and other names of people.
LOCK TABLE store, therapist, patient, assignment IN ACCESS EXCLUSIVE MODE;

ALTER TABLE therapist ADD COLUMN aliases TEXT COLLATE "C" NOT NULL DEFAULT '[]';    -- JSON: [name, ...]
ALTER TABLE patient
    ADD COLUMN aliases TEXT COLLATE "C" NOT NULL DEFAULT '[]',                      -- JSON: [name, ...]
    ADD COLUMN merged_into_patient_id TEXT COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX patient_by_merge ON patient (merged_into_patient_id, patient_id) WHERE merged_into_patient_id <> '';
-- A purge skips merged patients: they are purged with the record into which they were merged.
DROP INDEX patient_by_deletion;
CREATE INDEX patient_by_deletion ON patient (deleted_us, patient_id)
    WHERE deleted_us IS NOT NULL AND merged_into_patient_id = '';

-- The records of a person that MergePatients joined, person_id included, which is the one that is not merged. Derived
-- from merged_into_patient_id, so that no check follows a chain of merges. Other patients have no row.
CREATE TABLE same_person (
    patient_id TEXT COLLATE "C" PRIMARY KEY REFERENCES patient ON DELETE CASCADE,
    person_id TEXT COLLATE "C" NOT NULL REFERENCES patient ON DELETE CASCADE
);
CREATE INDEX same_person_by_person ON same_person (person_id, patient_id);

-- NOT VALID skips a scan: the rows obey a stricter rule.
ALTER TABLE assignment
    ADD COLUMN expire_us BIGINT,                                                    -- the planned end
    DROP CONSTRAINT assignment_end_reason_check,
    ADD CONSTRAINT assignment_end_reason_check CHECK (end_reason >= 0) NOT VALID,
    ADD CONSTRAINT assignment_expire_check CHECK (end_us IS NOT NULL OR expire_us >= start_us) NOT VALID;
CREATE INDEX assignment_expiring ON assignment (expire_us, assignment_id)
    WHERE expire_us IS NOT NULL AND end_us IS NULL;
