"""Writes docs/errors.md from the contract's comments and the server's table of codes: `python -m tests.errors_page`."""

import re
from pathlib import Path
from typing import Final

from caseload_server.rpc.status_map import CODES
from google.rpc.code_pb2 import Code

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
CONTRACT = ROOT / "protos" / "caseload" / "v1" / "error_reason.proto"

WHAT_TO_DO: Final = {
    "INVALID_FIELD": "Mend the fields named in BadRequest. Do not repeat the call as it is.",
    "PAGE_TOKEN_INVALID": "Begin the list again, without a page_token.",
    "PAGE_TOKEN_MISMATCH": "Send the arguments of the first page, or begin again without a page_token.",
    "REQUEST_ID_REUSED": "Send this request under a new request_id.",
    "THERAPIST_NOT_FOUND": "Check the id. With allow_missing a delete takes this for done.",
    "PATIENT_NOT_FOUND": "Check the id. With allow_missing a delete takes this for done.",
    "ASSIGNMENT_NOT_FOUND": "Check the id, or in a transfer the patients that ResourceInfo names. Otherwise nothing is "
    "left to end: with allow_missing an unassign takes this for done.",
    "ID_TAKEN": "Choose another id, or none. To find out whether an earlier try made it, get the record.",
    "IDENTIFIER_TAKEN": "Look for the record with `filter.identifier`: it may be the same person.",
    "ASSIGNMENT_DIFFERS": "Keep what is there, or send `replace` to end that period and begin this one.",
    "THERAPIST_DELETED": "Undelete the therapist, or choose another.",
    "PATIENT_DELETED": "Undelete the patient first.",
    "THERAPIST_NOT_ACTIVE": "Choose another therapist; `filter.accepting_patients` lists those who can take one.",
    "PATIENT_NOT_ACTIVE": "Set the patient's status to STATUS_ACTIVE first.",
    "PRIMARY_EXISTS": "Assign with another role, or send `replace_primary`.",
    "THERAPIST_AT_CAPACITY": "Choose another therapist, or send `ignore_capacity`.",
    "HAS_ACTIVE_ASSIGNMENTS": "Unassign first; a delete with `force` ends them itself.",
    "PERIOD_OVERLAPS": "Send a later start_time, or none: then the server finds one that fits.",
    "TOO_MANY_ASSIGNMENTS": "Transfer them in parts, by `patient_ids`. Before a delete with `force`, unassign some.",
    "ETAG_MISMATCH": "Get the record, decide again, and send its new etag.",
    "STORE_BUSY": "Repeat the call after the delay in RetryInfo.",
    "STORE_UNAVAILABLE": "Repeat the call after the delay in RetryInfo; look at the server's disk.",
    "OUTCOME_UNKNOWN": "Repeat the call with the same request_id. Without one, read first.",
    "STORE_FULL": "Make room on the server's disk.",
    "SHUTTING_DOWN": "Repeat the call after a moment, with the same request_id; a watch, after its through_revision.",
    "OVERLOADED": "Repeat the call after the delay in RetryInfo, and not before; nothing was done.",
    "REVISION_PRUNED": "Read the records anew, and watch after the revision of the first page.",
    "REVISION_FOREIGN": "Read the records anew: what was kept from before may not be in this store.",
    "TOO_MANY_WATCHES": "Close a watch, or try again later; operators can raise `--max-watches`.",
    "WATCH_TOO_SLOW": "Watch again after its through_revision; read faster, or filter.",
    "UNAUTHENTICATED": "Send a key as `authorization: Bearer TOKEN`, or a client certificate that the server knows.",
    "PERMISSION_DENIED": "Ask the operators for the permission, or call with the credentials of a caller that has it.",
    "DEADLINE_EXCEEDED": "Repeat the call with a longer deadline.",
    "INTERNAL": "Tell the operators the error_id. A write may be repeated with the same request_id.",
}

HEAD = """\
# Errors

<!-- Made by `make errors-doc` from error_reason.proto and service/caseload_server/rpc/status_map.py: do not edit. -->

Every error that the service makes has a gRPC status code and a `google.rpc.ErrorInfo` whose domain is `caseload.v1`.
Branch on the reason, never on the message. No message or metadata repeats a value that was sent, save ids that are
well-formed. The gRPC library makes a few errors of its own, without a reason: UNIMPLEMENTED for an unknown method,
RESOURCE_EXHAUSTED for a message above 1 MiB or metadata above 16 KiB, CANCELLED for a watch whose reader takes nothing
for 30 seconds, UNAVAILABLE where no server answers, and DEADLINE_EXCEEDED at the caller's own deadline. After either of
the last two a write may have been done: repeat it with the same `request_id`.

| reason | code | when | what to do |
|---|---|---|---|
"""

REASON = re.compile(r"((?:^  //.*\n)+)^  ERROR_REASON_(\w+) = \d+;", re.MULTILINE)


def comments() -> dict[str, tuple[str, str]]:
    """Of each reason in the contract: the name of its code, and when it is sent."""
    found = {}
    for comment, reason in REASON.findall(CONTRACT.read_text()):
        words = " ".join(comment.replace("//", " ").split())
        code, _, when = words.partition(". ")
        found[reason] = (code, when)
    del found["UNSPECIFIED"]
    return found


def row(reason: str, when: str) -> str:
    """One line of the table."""
    return f"| {reason} | {Code.Name(CODES[reason])} | {when} | {WHAT_TO_DO[reason]} |\n"


def page() -> str:
    """The whole page."""
    said = comments()
    return HEAD + "".join(row(reason, when) for reason, (_, when) in said.items())


if __name__ == "__main__":
    PAGE.write_text(page())
