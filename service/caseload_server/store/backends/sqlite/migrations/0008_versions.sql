-- What records were before each change. An older instance keeps no version of what it changes, so that versions_revision
-- moves on: versions are complete for the changes after it.

ALTER TABLE store ADD COLUMN versions_revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE store ADD COLUMN versions_us INTEGER NOT NULL DEFAULT 0;     -- the latest time of changes up to it
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
ALTER TABLE change ADD COLUMN version_hash TEXT;

-- The key begins with the revision, so that new versions are written beside each other.
CREATE TABLE therapist_version (
    therapist_id TEXT NOT NULL REFERENCES therapist ON DELETE CASCADE,
    to_revision INTEGER NOT NULL,         -- the change that ended it
    to_us INTEGER NOT NULL,               -- the time of that change
    image TEXT NOT NULL,             -- JSON: {column: value, ...}
    PRIMARY KEY (to_revision, therapist_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX therapist_version_by_record ON therapist_version (therapist_id, to_revision);

CREATE TABLE patient_version (
    patient_id TEXT NOT NULL REFERENCES patient ON DELETE CASCADE,
    to_revision INTEGER NOT NULL,
    to_us INTEGER NOT NULL,
    merged_into_patient_id TEXT NOT NULL,
    image TEXT NOT NULL,
    PRIMARY KEY (to_revision, patient_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX patient_version_by_record ON patient_version (patient_id, to_revision);
CREATE INDEX patient_version_by_merge ON patient_version (merged_into_patient_id, to_revision)
    WHERE merged_into_patient_id <> '';

-- The columns of an assignment, so that lists as they were known at a time select them as lists of assignments do.
CREATE TABLE assignment_version (
    assignment_id TEXT NOT NULL REFERENCES assignment ON DELETE CASCADE,
    to_revision INTEGER NOT NULL,
    to_us INTEGER NOT NULL,
    therapist_id TEXT NOT NULL,
    patient_id TEXT NOT NULL,
    role INTEGER NOT NULL,
    focus TEXT NOT NULL,
    start_us INTEGER NOT NULL,
    end_us INTEGER,
    end_reason INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    ended_by TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    etag TEXT NOT NULL,
    expire_us INTEGER,
    PRIMARY KEY (to_revision, assignment_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX assignment_version_by_record ON assignment_version (assignment_id, to_revision);

CREATE TRIGGER change_set_without_versions AFTER INSERT ON change_set WHEN NEW.hash_version < 2
BEGIN
    UPDATE store SET versions_revision = NEW.revision, versions_us = MAX(versions_us, NEW.committed_us)
    WHERE versions_revision < NEW.revision;
END;
