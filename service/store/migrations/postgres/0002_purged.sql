-- Therapists and patients that were erased for good: what stays of each, so that its id is never given again.
CREATE TABLE purged (
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('therapist', 'patient')),
    record_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, record_id)
);

CREATE INDEX therapist_by_deletion ON therapist (deleted_us, therapist_id) WHERE deleted_us IS NOT NULL;
CREATE INDEX patient_by_deletion ON patient (deleted_us, patient_id) WHERE deleted_us IS NOT NULL;
