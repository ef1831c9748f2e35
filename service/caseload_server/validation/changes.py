"""Requests about the change log: messages to what the store takes, or InvalidField."""

from caseload.v1 import change_service_pb2 as pb

from caseload_server.domain import requests
from caseload_server.validation import rules
from caseload_server.validation.rules import Problems

_actor = rules.text(0, 200)


def query(request: pb.ListChangesRequest | pb.WatchChangesRequest) -> requests.ChangeQuery:
    """Which changes a request asks for. What it starts after is for the store to judge."""
    problems = Problems()
    wanted = request.filter
    found = requests.ChangeQuery(
        therapist_id=rules.optional_id(wanted.therapist_id, "filter.therapist_id", problems),
        patient_id=rules.optional_id(wanted.patient_id, "filter.patient_id", problems),
        actor=_actor(wanted.actor, "filter.actor", problems),
    )
    problems.check()
    return found
