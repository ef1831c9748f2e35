"""The approximate size of a therapist or a patient as a message."""

import json
from itertools import chain
from typing import Any, Final

from caseload_server.domain import limits
from caseload_server.domain.records import Patient, Therapist

_JSON_COLUMNS: Final = {"aliases", "identifiers", "specialties", "annotations"}
_RECORD_OVERHEAD_BYTES: Final = 128
"""Approximate size of a record's numbers and times as a message, in bytes."""
_TEXT_OVERHEAD_BYTES: Final = 4
"""Approximate size of a text's tag and length in a message, in bytes."""


def approximate_bytes(record: Therapist | Patient) -> int:
    """Returns the approximate size of a record as a message. For a small one it is an upper bound."""
    lengths = sum(len(value) + 1 for value in record if isinstance(value, str))
    bound = _RECORD_OVERHEAD_BYTES + 8 * lengths
    if bound <= limits.MAX_RECORD_BYTES:
        return bound  # a character takes at most four bytes, and each text, or part of a JSON text, four more
    texts = [
        json.loads(value) if column in _JSON_COLUMNS else value
        for column, value in record._asdict().items()
        if isinstance(value, str)
    ]
    return _RECORD_OVERHEAD_BYTES + _message_bytes(texts)


def _message_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) + _TEXT_OVERHEAD_BYTES
    return sum(map(_message_bytes, chain.from_iterable(value.items()) if isinstance(value, dict) else value))
