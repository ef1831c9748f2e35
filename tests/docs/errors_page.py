"""Writes docs/errors.md from the comments of the contract and the table of status codes: `make errors-doc`."""

import re
from pathlib import Path
from typing import Final

from caseload_server.rpc.status_map import CODES
from google.rpc.code_pb2 import Code

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
CONTRACT = ROOT / "protos" / "caseload" / "v1" / "error_reason.proto"

WHAT_TO_DO: Final = {
    "INVALID_FIELD": "Correct the fields named in BadRequest. Do not repeat the call unchanged.",
    "PAGE_TOKEN_INVALID": "Start the list again without a page_token.",
    "PAGE_TOKEN_MISMATCH": "Send the arguments of the first page, or start again without a page_token.",
    "REQUEST_ID_REUSED": "Send this request with a new request_id.",
    "THERAPIST_NOT_FOUND": "Check the id. A delete with allow_missing succeeds instead.",
    "PATIENT_NOT_FOUND": "Check the id. A delete with allow_missing succeeds instead.",
    "ASSIGNMENT_NOT_FOUND": "Check the id. In a transfer, check the patients that ResourceInfo names. In an unassign "
    "there is nothing to end: with allow_missing it succeeds instead.",
    "ID_TAKEN": "Choose another id, or none. To find out whether an earlier try created the record, get it.",
    "IDENTIFIER_TAKEN": "Look at the record that ResourceInfo names, or find it with `filter.identifier`: it may be "
    "the same person. An undelete with `release_identifiers` drops the identifier.",
    "ASSIGNMENT_DIFFERS": "Keep the existing assignment, or set `replace` to end it and start this one.",
    "THERAPIST_DELETED": "Undelete the therapist, or choose another one.",
    "PATIENT_DELETED": "Undelete the patient first.",
    "THERAPIST_NOT_ACTIVE": "Choose another therapist: `filter.accepting_patients` lists those who can take a patient.",
    "PATIENT_NOT_ACTIVE": "Set the patient's status to STATUS_ACTIVE first.",
    "PRIMARY_EXISTS": "Assign with another role. Or set `replace_primary`, which ends the other assignment, or "
    "`demote_primary`, which makes it a treating one.",
    "THERAPIST_AT_CAPACITY": "Choose another therapist, or set `ignore_capacity`.",
    "HAS_ACTIVE_ASSIGNMENTS": "Unassign first. An update or a delete with `force` ends the assignments itself.",
    "PERIOD_OVERLAPS": "Send a later start_time or effective_time, or none: the server then chooses one that fits. "
    "For a finished period, send other times, or correct the other period.",
    "TOO_MANY_ASSIGNMENTS": "Transfer them in parts with `patient_ids`. Before an update or a delete with `force`, "
    "unassign some.",
    "PATIENT_MERGED": "Use the record that metadata names. If the merge was wrong, call UnmergePatients.",
    "BIRTH_DATES_DIFFER": "Find out whether they are one person. If so, correct a date, or set `force`.",
    "MERGE_TOO_LARGE": "Remove identifiers, aliases or other values that you do not need from one of the two records. "
    "Then merge again. A person can have at most 100 records.",
    "ETAG_MISMATCH": "Get the record, decide again, and send its new etag.",
    "STORE_BUSY": "Retry after the delay in RetryInfo. Operators: [find the cause]"
    "(operations/limits-and-overload.md#callers-get-store_busy).",
    "STORE_UNAVAILABLE": "Retry after the delay in RetryInfo. Operators: [find the cause]"
    "(operations/health.md#the-server-is-not_serving).",
    "OUTCOME_UNKNOWN": "Repeat the call with the same request_id. Without a request_id, read the record first.",
    "STORE_FULL": "Operators: free space on the disk of the database.",
    "SHUTTING_DOWN": "Retry shortly with the same request_id. Resume a watch after its last through_revision.",
    "ACCESS_LOG_UNAVAILABLE": "Retry after the delay in RetryInfo. Operators: [free the disk of the access log]"
    "(operations/logs.md#calls-that-must-be-logged).",
    "OVERLOADED": "Retry after the delay in RetryInfo, not earlier. The server did nothing. Operators: "
    "[Limits and overload](operations/limits-and-overload.md).",
    "REVISION_PRUNED": "Read the records again, and watch after the revision of the first page.",
    "VERSIONS_NOT_KEPT": "Send the time in metadata `oldest_time`, or a later one.",
    "REVISION_FOREIGN": "Read the records again. This store may not have what you read before.",
    "TOO_MANY_WATCHES": "Close a watch, or retry later. Operators can raise `--max-watches` or `--max-caller-share`.",
    "WATCH_TOO_SLOW": "Watch again after the last through_revision received. Read faster, or filter.",
    "UNAUTHENTICATED": "Send a key or a token as `authorization: Bearer TOKEN`, or a known client certificate.",
    "PERMISSION_DENIED": "Ask the operators for the permission, or use credentials that have it.",
    "DEADLINE_EXCEEDED": "Retry with a longer deadline.",
    "INTERNAL": "Send the error_id to the operators. A write may be repeated with the same request_id.",
}
"""What a caller does about each reason."""

HEAD = """\
# Errors

<!-- Made by `make errors-doc` from error_reason.proto and service/caseload_server/rpc/status_map.py: do not edit. -->

A call failed: find its reason in the table below, and do what the last column says.

Every error of the service has a gRPC status code and a `google.rpc.ErrorInfo`: a reason, and the domain `caseload.v1`.
Branch on the reason, never on the message. No message or metadata repeats a sent value, except well-formed ids.
An error of one entry of a batch has its position in metadata `index`, from 0. If it conflicts with an earlier entry,
`other_index` is the position of that one. It replaces `assignment_id` or ResourceInfo.

The gRPC library itself reports a few errors, which have no reason:

- UNIMPLEMENTED: the method does not exist.
- RESOURCE_EXHAUSTED: the message is larger than 1 MiB, or the metadata is larger than 16 KiB.
- CANCELLED: the reader of a watch took nothing for 30 seconds.
- CANCELLED: the server had too many calls, or stopped before the call began. Repeat it with the same `request_id`.
- UNAVAILABLE: no server answers. A write may have succeeded: repeat it with the same `request_id`.
- DEADLINE_EXCEEDED: the caller's own deadline passed. A write may have succeeded: repeat it with the same `request_id`.

| reason | code | when | what to do |
|---|---|---|---|
"""

REASON = re.compile(r"((?:^  //.*\n)+)^  ERROR_REASON_(\w+) = \d+;", re.MULTILINE)


def comments() -> dict[str, tuple[str, str]]:
    """Returns, for each reason in the contract, the name of its code and when it is sent."""
    found = {}
    for comment, reason in REASON.findall(CONTRACT.read_text()):
        text = " ".join(comment.replace("//", " ").split())
        code, _, when = text.partition(". ")
        found[reason] = (code, when)
    del found["UNSPECIFIED"]
    return found


def row(reason: str, when: str) -> str:
    """Returns one line of the table."""
    return f"| {reason} | {Code.Name(CODES[reason])} | {when} | {WHAT_TO_DO[reason]} |\n"


def page() -> str:
    """Returns the whole page."""
    return HEAD + "".join(row(reason, when) for reason, (_, when) in comments().items())


if __name__ == "__main__":
    PAGE.write_text(page())
