-- What records were before each change. An older instance keeps no version of what it changes, so that versions_revision
-- moves on: versions are complete for the changes after it.
LOCK TABLE store, change_set, change IN ACCESS EXCLUSIVE MODE;

ALTER TABLE store ADD COLUMN versions_revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE store ADD COLUMN versions_us BIGINT NOT NULL DEFAULT 0;     -- the latest time of changes up to it
-- Clocks differ and step back, and the change log may have been pruned. So the last change need not have the latest time.
UPDATE store SET versions_revision = head_revision, versions_us = (
    SELECT COALESCE(MAX(us), 0) FROM (
        SELECT MAX(committed_us) AS us FROM change_set
        UNION ALL SELECT MAX(updated_us) FROM therapist
        UNION ALL SELECT MAX(updated_us) FROM patient
        UNION ALL SELECT MAX(updated_us) FROM assignment
    ) AS latest
);

-- The hash of the version that a change kept, in hex, so that the hash chain covers it.
ALTER TABLE change ADD COLUMN version_hash TEXT COLLATE "C";

CREATE TABLE therapist_version (
    therapist_id TEXT COLLATE "C" NOT NULL REFERENCES therapist ON DELETE CASCADE,
    to_revision BIGINT NOT NULL,         -- the change that ended it
    to_us BIGINT NOT NULL,               -- the time of that change
    image TEXT COLLATE "C" NOT NULL,             -- JSON: {column: value, ...}
    PRIMARY KEY (therapist_id, to_revision)
);
CREATE INDEX therapist_version_by_revision ON therapist_version (to_revision);

CREATE TABLE patient_version (
    patient_id TEXT COLLATE "C" NOT NULL REFERENCES patient ON DELETE CASCADE,
    to_revision BIGINT NOT NULL,
    to_us BIGINT NOT NULL,
    merged_into_patient_id TEXT COLLATE "C" NOT NULL,
    image TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (patient_id, to_revision)
);
CREATE INDEX patient_version_by_revision ON patient_version (to_revision);
CREATE INDEX patient_version_by_merge ON patient_version (merged_into_patient_id, to_revision)
    WHERE merged_into_patient_id <> '';

-- The columns of an assignment, so that lists as they were known at a time select them as lists of assignments do.
CREATE TABLE assignment_version (
    assignment_id TEXT COLLATE "C" NOT NULL REFERENCES assignment ON DELETE CASCADE,
    to_revision BIGINT NOT NULL,
    to_us BIGINT NOT NULL,
    therapist_id TEXT COLLATE "C" NOT NULL,
    patient_id TEXT COLLATE "C" NOT NULL,
    role BIGINT NOT NULL,
    focus TEXT COLLATE "C" NOT NULL,
    start_us BIGINT NOT NULL,
    end_us BIGINT,
    end_reason BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    ended_by TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    etag TEXT COLLATE "C" NOT NULL,
    expire_us BIGINT,
    PRIMARY KEY (assignment_id, to_revision)
);
CREATE INDEX assignment_version_by_revision ON assignment_version (to_revision);

CREATE FUNCTION move_versions_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE store SET versions_revision = NEW.revision, versions_us = GREATEST(versions_us, NEW.committed_us)
    WHERE versions_revision < NEW.revision;
    RETURN NULL;
END $$;

CREATE TRIGGER change_set_without_versions AFTER INSERT ON change_set
FOR EACH ROW WHEN (NEW.hash_version < 2) EXECUTE FUNCTION move_versions_revision();
