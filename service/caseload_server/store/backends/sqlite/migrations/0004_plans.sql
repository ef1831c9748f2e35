-- For lists of few among many, and for lists as of a time: without these a page would read every period before it.
DROP INDEX assignment_active;
CREATE INDEX assignment_active ON assignment (assignment_id, start_us, role) WHERE end_us IS NULL;
DROP INDEX assignment_by_therapist;
CREATE INDEX assignment_by_therapist ON assignment (therapist_id, assignment_id, start_us, end_us, end_reason, role);
CREATE INDEX assignment_ended_by_id ON assignment (assignment_id) WHERE end_us IS NOT NULL;
CREATE INDEX assignment_ended_by_role ON assignment (role, assignment_id) WHERE end_us IS NOT NULL;
CREATE INDEX therapist_unassigned_by_status ON therapist (status, therapist_id) WHERE active_patient_count = 0;
CREATE INDEX patient_unassigned_by_status ON patient (status, patient_id) WHERE active_therapist_count = 0;
