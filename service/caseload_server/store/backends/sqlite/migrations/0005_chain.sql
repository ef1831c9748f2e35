-- alone: no instance may run beside this step, because it would append change sets without a hash.
-- The hash chain over the change log, and on whose behalf a change was made. docs/operations/change-log.md explains it.
ALTER TABLE store ADD COLUMN chain_revision INTEGER NOT NULL DEFAULT 0; -- change sets up to this one are older than it
ALTER TABLE store ADD COLUMN head_hash BLOB NOT NULL                    -- of the newest change set
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';
ALTER TABLE store ADD COLUMN oldest_hash BLOB NOT NULL                  -- of the last pruned change set
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';
UPDATE store SET chain_revision = head_revision;

-- Both tables again: an older version does not set hash_version, which has no default, so its inserts fail from now on.
-- And SQLite cannot change the CHECK of an existing table.
CREATE TABLE chained_change_set (
    revision INTEGER PRIMARY KEY,
    committed_us INTEGER NOT NULL,
    actor TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id TEXT NOT NULL,
    on_behalf_of TEXT NOT NULL DEFAULT '',
    hash_version INTEGER NOT NULL,      -- of the canonical form; 0 is older than the chain
    hash BLOB NOT NULL DEFAULT x''
) STRICT;

CREATE TABLE chained_change (
    revision INTEGER NOT NULL REFERENCES chained_change_set,
    position INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind >= 1),
    changed_fields TEXT NOT NULL,       -- names, comma between
    therapist_id TEXT,                  -- of a therapist, or of the assignment
    patient_id TEXT,                    -- of a patient, or of the assignment
    assignment_id TEXT,
    through_revision INTEGER,           -- of a purge of the log: up to which revision
    PRIMARY KEY (revision, position)
) STRICT, WITHOUT ROWID;

INSERT INTO chained_change_set SELECT *, '', 0, x'' FROM change_set;
INSERT INTO chained_change SELECT *, NULL FROM change;
DROP TABLE change;
DROP TABLE change_set;
ALTER TABLE chained_change_set RENAME TO change_set;
ALTER TABLE chained_change RENAME TO change;
CREATE INDEX change_set_by_actor ON change_set (actor, revision);
CREATE INDEX change_set_by_on_behalf_of ON change_set (on_behalf_of, revision) WHERE on_behalf_of <> '';
CREATE INDEX change_by_therapist ON change (therapist_id, revision) WHERE therapist_id IS NOT NULL;
CREATE INDEX change_by_patient ON change (patient_id, revision) WHERE patient_id IS NOT NULL;
