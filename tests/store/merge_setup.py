"""Merges for tests: calls, and the identifiers of patients."""

import json
from typing import Any

from caseload_server.domain.requests import (
    CallContext,
    Merge,
)
from caseload_server.domain.results import MergeResult, UnmergeResult
from caseload_server.store import RelationshipStore

from tests.store.store_calls import (
    CALL,
)

REQUEST_ID = "3b241101-e2bb-4255-8caf-4136c566a962"


def merge(
    store: RelationshipStore, source: str = "s", target: str = "p", call: CallContext = CALL, **flags: bool
) -> MergeResult:
    return store.merge(Merge(source, target, **flags), call)


def unmerge(store: RelationshipStore, source: str = "s", call: CallContext = CALL) -> UnmergeResult:
    return store.unmerge(source, call)


def checked(store: RelationshipStore, at_us: int, *pairs: tuple[str, str]) -> list[str | None]:
    """The assignment in force for each pair."""
    return [one.assignment_id for one in store.check_assignments(list(pairs), at_us)[0]]


def identifiers(patient: Any) -> list[str]:
    return [value for _, value in json.loads(patient.identifiers)]


def with_identifiers(*values: str) -> str:
    return json.dumps([["mrn", value] for value in values], separators=(",", ":"))
