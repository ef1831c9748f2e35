"""Validates requests, with one function for each kind: `validate.create_therapist(request)`. Does no I/O."""

from caseload_server.validation.assignments import (
    assign,
    batch_assign,
    check_assignments,
    list_assignments,
    list_caseload,
    transfer_patients,
    unassign,
    update_assignment,
)
from caseload_server.validation.changes import change_query
from caseload_server.validation.merges import merge_patients, unmerge_patients
from caseload_server.validation.records import (
    batch_create_patients,
    batch_create_therapists,
    batch_ids,
    create_patient,
    create_therapist,
    delete,
    list_patients,
    list_therapists,
    record_id,
    undelete,
    update_patient,
    update_therapist,
)
from caseload_server.validation.rules import page_size

__all__ = [
    "assign",
    "batch_assign",
    "batch_create_patients",
    "batch_create_therapists",
    "batch_ids",
    "change_query",
    "check_assignments",
    "create_patient",
    "create_therapist",
    "delete",
    "list_assignments",
    "list_caseload",
    "list_patients",
    "list_therapists",
    "merge_patients",
    "page_size",
    "record_id",
    "transfer_patients",
    "unassign",
    "undelete",
    "unmerge_patients",
    "update_assignment",
    "update_patient",
    "update_therapist",
]
