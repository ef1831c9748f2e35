"""Validates requests about the change log. Each function returns what the store needs, or raises InvalidField."""

from caseload.v1 import change_service_pb2 as pb

from caseload_server.domain import requests
from caseload_server.validation import rules
from caseload_server.validation.rules import ValidationErrors

_actor = rules.text(0, 200)


def change_query(request: pb.ListChangesRequest | pb.WatchChangesRequest) -> requests.ChangeQuery:
    """Returns the query of a ListChanges or WatchChanges request. The store validates after_revision."""
    violations = ValidationErrors()
    sent = request.filter
    query = requests.ChangeQuery(
        therapist_id=rules.optional_id(sent.therapist_id, "filter.therapist_id", violations),
        patient_id=rules.optional_id(sent.patient_id, "filter.patient_id", violations),
        actor=_actor(sent.actor, "filter.actor", violations),
        on_behalf_of=rules.on_behalf_of(sent.on_behalf_of, "filter.on_behalf_of", violations),
    )
    violations.raise_if_any()
    return query
