"""Requests about the change log: messages to what the store takes, or InvalidField."""

from caseload.v1 import change_service_pb2 as pb

from service import fields, records
from service.fields import Problems

_actor = fields.text(0, 200)


def query(request: pb.ListChangesRequest | pb.WatchChangesRequest) -> records.ChangeQuery:
    """Which changes a request asks for. What it starts after is for the store to judge."""
    problems = Problems()
    wanted = request.filter
    found = records.ChangeQuery(
        therapist_id=fields.optional_id(wanted.therapist_id, "filter.therapist_id", problems),
        patient_id=fields.optional_id(wanted.patient_id, "filter.patient_id", problems),
        actor=_actor(wanted.actor, "filter.actor", problems),
    )
    problems.check()
    return found
