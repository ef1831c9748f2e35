"""The largest request of each method, in bytes. A larger one is rejected before it is parsed.

So a rejected request costs no more than the largest valid one. Padding and unknown fields count too.
"""

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from caseload_server.domain import limits

_RECORDS: Final = frozenset({"caseload.v1.Therapist", "caseload.v1.Patient"})
_LIST_SIZES: Final = {"caseload.v1.TransferPatientsRequest.patient_ids": limits.MAX_ASSIGNMENTS_PER_CALL}
"""The largest number of entries of the lists that may be longer than a batch."""
_NORMALIZATION: Final = 3
"""Text takes at most this many times the bytes before Unicode normalization: https://unicode.org/faq/normalization."""
_CODE_BYTES: Final = 67
"""An id or a code: 64 characters of one byte each, with tag and length."""
_PATH_BYTES: Final = 512
"""A path of a mask. Field names are shorter. The rest is room for wrong paths, so that the error can name them."""
_TEXT_BYTES: Final = 254 * 4 * _NORMALIZATION
"""The longest text outside a record, an e-mail address: 254 characters of four bytes each."""
_NUMBER_BYTES: Final = 11
_MESSAGE_OVERHEAD_BYTES: Final = 5
"""Tag and length of a message in a request."""
_SPARE_BYTES: Final = 4096
"""For white space around texts, and for the fields of a newer contract, which the server ignores."""


def max_request_bytes(request: Descriptor) -> int:
    """Returns the largest size of a request. Args: request, its message type."""
    return min(limits.MAX_MESSAGE_BYTES, _SPARE_BYTES + _message_bytes(request))


def _message_bytes(message: Descriptor) -> int:
    if message.full_name in _RECORDS:
        return limits.MAX_RECORD_BYTES * _NORMALIZATION
    return _MESSAGE_OVERHEAD_BYTES + sum(map(_field_bytes, message.fields))


def _field_bytes(field: FieldDescriptor) -> int:
    entries = _LIST_SIZES.get(field.full_name, limits.MAX_BATCH_SIZE) if field.is_repeated else 1
    if field.message_type:
        return entries * _message_bytes(field.message_type)
    if field.type != FieldDescriptor.TYPE_STRING:
        return entries * _NUMBER_BYTES
    if field.full_name == "google.protobuf.FieldMask.paths":
        return entries * _PATH_BYTES
    is_code = field.is_repeated or field.name.endswith("_id")
    return entries * (_CODE_BYTES if is_code else _TEXT_BYTES)
