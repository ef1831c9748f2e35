-- For lists of few among many: without these a page would read all who are between.
CREATE INDEX therapist_accepting ON therapist (status, therapist_id)
    WHERE status = 1 AND deleted_us IS NULL
        AND (max_active_patients IS NULL OR active_patient_count < max_active_patients);
CREATE INDEX assignment_active_by_role ON assignment (role, assignment_id) WHERE end_us IS NULL;
CREATE INDEX assignment_by_end ON assignment (end_us, start_us, assignment_id) WHERE end_us IS NOT NULL;
