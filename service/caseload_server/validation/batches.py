"""Validates requests with entries that are requests themselves, as in https://google.aip.dev/233."""

from collections.abc import Callable
from typing import Any, TypeVar

from caseload_server.domain import limits
from caseload_server.domain.errors import InvalidField
from caseload_server.validation import rules
from caseload_server.validation.rules import ValidationErrors

T = TypeVar("T")


def validate_batch(request: Any, validate_entry: Callable[[Any], T]) -> list[T]:
    """Returns the result of validate_entry for each entry. Raises InvalidField with the paths of the whole batch."""
    violations = ValidationErrors()
    rules.request_id(request.request_id, "request_id", violations)
    if not 1 <= len(request.requests) <= limits.MAX_BATCH_SIZE:
        violations.add("requests", f"must have 1 to {limits.MAX_BATCH_SIZE} entries")
        violations.raise_if_any()
    results = []
    for index, entry in enumerate(request.requests):
        for name in ("request_id", "validate_only"):
            if getattr(entry, name):
                violations.add(f"requests[{index}].{name}", "must not be set on an entry, only on the batch")
        try:
            results.append(validate_entry(entry))
        except InvalidField as error:
            violations += error.of_entry(index).violations
    violations.raise_if_any()
    return results
