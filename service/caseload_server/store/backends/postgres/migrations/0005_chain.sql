-- alone: no instance may run beside this step, because it would append change sets without a hash.
-- The hash chain over the change log, and on whose behalf a change was made. docs/operations/change-log.md explains it.
-- Readers lock these tables in this order.
LOCK TABLE store, change_set, change IN ACCESS EXCLUSIVE MODE;

ALTER TABLE store
    ADD COLUMN chain_revision BIGINT NOT NULL DEFAULT 0,    -- change sets up to this one are older than the chain
    ADD COLUMN head_hash BYTEA NOT NULL                     -- of the newest change set
        DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000',
    ADD COLUMN oldest_hash BYTEA NOT NULL                   -- of the last pruned change set
        DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000';
UPDATE store SET chain_revision = head_revision;

ALTER TABLE change_set
    ADD COLUMN on_behalf_of TEXT COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN hash_version BIGINT NOT NULL DEFAULT 0,      -- of the canonical form; 0 is older than the chain
    ADD COLUMN hash BYTEA NOT NULL DEFAULT '';
-- An instance of an older version does not set it, so its inserts fail from now on.
ALTER TABLE change_set ALTER COLUMN hash_version DROP DEFAULT;
CREATE INDEX change_set_by_on_behalf_of ON change_set (on_behalf_of, revision) WHERE on_behalf_of <> '';

-- NOT VALID skips a scan: the rows obey a stricter rule.
ALTER TABLE change
    ADD COLUMN through_revision BIGINT,                     -- of a purge of the log: up to which revision
    DROP CONSTRAINT change_kind_check,
    ADD CONSTRAINT change_kind_check CHECK (kind >= 1) NOT VALID;
