-- One index for each order and each filter of a list, so that a page reads few rows at any size of the table. Reads are
-- answered until the tables are locked.
CREATE INDEX therapist_by_update ON therapist (updated_us, therapist_id);
CREATE INDEX therapist_deleted ON therapist (therapist_id) WHERE deleted_us IS NOT NULL;
CREATE INDEX patient_by_update ON patient (updated_us, patient_id);
CREATE INDEX patient_by_phone_number ON patient (phone_number, patient_id) WHERE phone_number <> '';
CREATE INDEX patient_by_birth_date ON patient (birth_date, patient_id) WHERE birth_date <> '';
CREATE INDEX patient_by_birth_month ON patient (substr(birth_date, 1, 7), patient_id) WHERE birth_date <> '';
CREATE INDEX patient_deleted ON patient (patient_id) WHERE deleted_us IS NOT NULL;

-- Soft-deleted records have a negative status in these indexes, because lists without them would have to pass over all
-- that were ever deleted: none of those has an active assignment.
CREATE INDEX therapist_by_live_status ON therapist
    (CAST(CASE WHEN deleted_us IS NULL THEN status ELSE -status END AS BIGINT), therapist_id);
CREATE INDEX patient_by_live_status ON patient
    (CAST(CASE WHEN deleted_us IS NULL THEN status ELSE -status END AS BIGINT), patient_id);
CREATE INDEX therapist_unassigned_by_live_status ON therapist
    (CAST(CASE WHEN deleted_us IS NULL THEN status ELSE -status END AS BIGINT), therapist_id) WHERE active_patient_count = 0;
CREATE INDEX patient_unassigned_by_live_status ON patient
    (CAST(CASE WHEN deleted_us IS NULL THEN status ELSE -status END AS BIGINT), patient_id) WHERE active_therapist_count = 0;
CREATE INDEX patient_without_primary ON patient
    (CAST(CASE WHEN deleted_us IS NULL THEN status ELSE -status END AS BIGINT), patient_id) WHERE primary_therapist_id = '';

-- Keys by which lists are ordered and people are found. An older instance leaves them as they are, so keyed_etag, which
-- holds the version of the rules and the etag of the record at that time, says for which records they are current.
--
-- An attempt to lock all tables, those of 0008_versions too, ends before the database looks for deadlocks, and readers
-- continue until the next one. So a reader that has one table and waits for another does not undo the indexes above.
DO $$
DECLARE
    longest_wait TEXT := current_setting('lock_timeout');
    deadline TIMESTAMPTZ := clock_timestamp() + CAST(longest_wait AS INTERVAL);
BEGIN
    LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '200ms', true);
            LOCK TABLE store, change_set, change, therapist, patient, therapist_identifier, patient_identifier
                IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > deadline THEN
                RAISE;
            END IF;
        END;
        PERFORM pg_sleep(0.05);
    END LOOP;
    PERFORM set_config('lock_timeout', longest_wait, true);
END $$;

ALTER TABLE therapist ADD COLUMN name_key TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE therapist ADD COLUMN email_key TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE therapist ADD COLUMN keyed_etag TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE patient ADD COLUMN name_key TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE patient ADD COLUMN email_key TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE patient ADD COLUMN keyed_etag TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE therapist_identifier ADD COLUMN value_key TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE therapist_identifier ADD COLUMN holds_key BIGINT CHECK (holds_key = 1);
ALTER TABLE patient_identifier ADD COLUMN value_key TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE patient_identifier ADD COLUMN holds_key BIGINT CHECK (holds_key = 1);

CREATE INDEX therapist_by_name ON therapist (name_key, therapist_id);
CREATE INDEX therapist_by_email ON therapist (email_key, therapist_id) WHERE email_key <> '';
CREATE INDEX patient_by_name ON patient (name_key, patient_id);
CREATE INDEX patient_by_email ON patient (email_key, patient_id) WHERE email_key <> '';

-- A list of all statuses merges the scans of each, so that a write pays for one index of unassigned records.
DROP INDEX therapist_by_status;
DROP INDEX patient_by_status;
DROP INDEX therapist_unassigned;
DROP INDEX patient_unassigned;
DROP INDEX therapist_unassigned_by_status;
DROP INDEX patient_unassigned_by_status;

-- The records whose keys and words are to be made: from before this step, or written by an older instance since.
CREATE INDEX therapist_without_keys ON therapist (therapist_id) WHERE keyed_etag <> '2:' || etag;
CREATE INDEX patient_without_keys ON patient (patient_id) WHERE keyed_etag <> '2:' || etag;

-- Two live records cannot hold the same key. Of records that had it before this step, or that an older instance
-- wrote since, the oldest holds it.
CREATE UNIQUE INDEX therapist_identifier_by_key ON therapist_identifier (value_key, system, holds_key);
CREATE UNIQUE INDEX patient_identifier_by_key ON patient_identifier (value_key, system, holds_key);

-- The identifiers whose key another live record holds.
CREATE INDEX therapist_identifier_doubles ON therapist_identifier (value_key, system)
    WHERE live = 1 AND holds_key IS NULL AND value_key <> '';
CREATE INDEX patient_identifier_doubles ON patient_identifier (value_key, system)
    WHERE live = 1 AND holds_key IS NULL AND value_key <> '';

-- After an upgrade of PostgreSQL there are no statistics, and without them each batch of keys would read whole tables.
-- A new store stays without: statistics of empty tables would lead to plans that read whole tables as these grow.
DO $$
BEGIN
    IF EXISTS (SELECT FROM therapist) OR EXISTS (SELECT FROM patient) THEN
        ANALYZE therapist, patient, therapist_identifier, patient_identifier, therapist_name_word, patient_name_word;
    END IF;
END $$;
