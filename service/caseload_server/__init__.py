"""Caseload: the system of record for therapists, patients and who treats whom."""
