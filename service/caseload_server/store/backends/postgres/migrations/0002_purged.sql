-- Therapists and patients that were erased for good: what stays of each, so that its id is never given again.
CREATE TABLE purged (
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('therapist', 'patient')),
    record_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, record_id)
);

CREATE INDEX therapist_by_deletion ON therapist (deleted_us, therapist_id) WHERE deleted_us IS NOT NULL;
CREATE INDEX patient_by_deletion ON patient (deleted_us, patient_id) WHERE deleted_us IS NOT NULL;

-- Whatever adds a row, a version of the server from before this step too: a purged id is taken, as that of a live one.
-- The row by that id is locked first, which waits for a purge of it; each statement here sees what was committed before.
CREATE FUNCTION skip_purged_therapist() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM therapist WHERE therapist_id = NEW.therapist_id FOR KEY SHARE;
    IF EXISTS (SELECT FROM purged WHERE kind = 'therapist' AND record_id = NEW.therapist_id) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER therapist_id_is_not_purged BEFORE INSERT ON therapist
FOR EACH ROW EXECUTE FUNCTION skip_purged_therapist();

CREATE FUNCTION skip_purged_patient() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM patient WHERE patient_id = NEW.patient_id FOR KEY SHARE;
    IF EXISTS (SELECT FROM purged WHERE kind = 'patient' AND record_id = NEW.patient_id) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER patient_id_is_not_purged BEFORE INSERT ON patient
FOR EACH ROW EXECUTE FUNCTION skip_purged_patient();
