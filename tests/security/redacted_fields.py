"""The fields of responses that callers without the permission read may see."""

from collections.abc import Iterator
from typing import Any, Final

from tests.support.api_driver import READS, RPCS

WRITES: Final = {name for name in RPCS if name not in READS}
KEPT: Final = {
    *("therapist_id", "patient_id", "assignment_id", "etag", "revision"),
    *("create_time", "update_time", "delete_time", "start_time", "end_time", "expire_time", "created", "ended"),
    "merged_into_patient_id",
}
"""What a response may have without `read`; the ids of other records only if the request names them."""


def set_fields(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        nested = field.message_type
        if nested and nested.file.package == "caseload.v1":
            for one in value if field.is_repeated else (value,):
                yield from set_fields(one)
        else:
            yield field.name
