-- Therapists and patients that were erased for good: what stays of each, so that its id is never given again.
CREATE TABLE purged (
    kind TEXT NOT NULL CHECK (kind IN ('therapist', 'patient')),
    record_id TEXT NOT NULL,
    PRIMARY KEY (kind, record_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX therapist_by_deletion ON therapist (deleted_us, therapist_id) WHERE deleted_us IS NOT NULL;
CREATE INDEX patient_by_deletion ON patient (deleted_us, patient_id) WHERE deleted_us IS NOT NULL;

-- Whatever adds a row, a version of the server from before this step too: a purged id is taken, as that of a live one.
CREATE TRIGGER therapist_id_is_not_purged BEFORE INSERT ON therapist
WHEN EXISTS (SELECT 1 FROM purged WHERE kind = 'therapist' AND record_id = NEW.therapist_id)
BEGIN
    SELECT RAISE(IGNORE);
END;

CREATE TRIGGER patient_id_is_not_purged BEFORE INSERT ON patient
WHEN EXISTS (SELECT 1 FROM purged WHERE kind = 'patient' AND record_id = NEW.patient_id)
BEGIN
    SELECT RAISE(IGNORE);
END;
