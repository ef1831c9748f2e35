-- alone: no instance may run beside this step, because it would append change sets without a hash.
-- The hash chain over the change log, and on whose behalf a change was made. docs/operations/change-log.md explains it.
ALTER TABLE store ADD COLUMN chain_revision INTEGER NOT NULL DEFAULT 0; -- change sets up to this one are older than it
ALTER TABLE store ADD COLUMN head_hash BLOB NOT NULL                    -- of the newest change set
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';
ALTER TABLE store ADD COLUMN oldest_hash BLOB NOT NULL                  -- of the last pruned change set
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';
UPDATE store SET chain_revision = head_revision;

ALTER TABLE change_set ADD COLUMN on_behalf_of TEXT NOT NULL DEFAULT '';
ALTER TABLE change_set ADD COLUMN hash_version INTEGER NOT NULL DEFAULT 0;  -- of the canonical form; 0 is older than the chain
ALTER TABLE change_set ADD COLUMN hash BLOB NOT NULL DEFAULT x'';
CREATE INDEX change_set_by_on_behalf_of ON change_set (on_behalf_of, revision) WHERE on_behalf_of <> '';

-- An instance of an older version does not set it, so its inserts fail from now on.
CREATE TRIGGER change_set_has_hash BEFORE INSERT ON change_set WHEN NEW.hash_version = 0
BEGIN
    SELECT RAISE(ABORT, 'a change set without a hash');
END;

-- The table again, because SQLite cannot change a CHECK of an existing one.
CREATE TABLE change_with_purges (
    revision INTEGER NOT NULL REFERENCES change_set,
    position INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind >= 1),
    changed_fields TEXT NOT NULL,       -- names, comma between
    therapist_id TEXT,                  -- of a therapist, or of the assignment
    patient_id TEXT,                    -- of a patient, or of the assignment
    assignment_id TEXT,
    through_revision INTEGER,           -- of a purge of the log: up to which revision
    PRIMARY KEY (revision, position)
) STRICT, WITHOUT ROWID;

INSERT INTO change_with_purges SELECT *, NULL FROM change;
DROP TABLE change;
ALTER TABLE change_with_purges RENAME TO change;
CREATE INDEX change_by_therapist ON change (therapist_id, revision) WHERE therapist_id IS NOT NULL;
CREATE INDEX change_by_patient ON change (patient_id, revision) WHERE patient_id IS NOT NULL;
