"""TherapistService: check, ask, answer. What each RPC means is said in the contract."""

from collections.abc import Callable

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc

from service import convert
from service.servicers.calls import call_of
from service.servicers.pages import PageTokens
from service.store import THERAPIST, RelationshipStore
from service.validate import assignments, people


class TherapistServicer(pb_grpc.TherapistServiceServicer):
    """Therapists and who they are assigned to."""

    def __init__(self, store: RelationshipStore, pages: PageTokens, clock: Callable[[], int]) -> None:
        """Args: clock, the time in microseconds since 1970 (UTC)."""
        self._store = store
        self._pages = pages
        self._clock = clock

    def CreateTherapist(
        self, request: pb.CreateTherapistRequest, context: grpc.ServicerContext
    ) -> pb.CreateTherapistResponse:
        record_id, fields = people.create(people.THERAPIST, request)
        outcome = self._store.create(THERAPIST, record_id, fields, call_of(request, context))
        return pb.CreateTherapistResponse(therapist=convert.therapist(outcome.record), revision=outcome.revision)

    def GetTherapist(self, request: pb.GetTherapistRequest, context: grpc.ServicerContext) -> pb.GetTherapistResponse:
        record = self._store.get(THERAPIST, people.record_id(request.therapist_id, "therapist_id"))
        return pb.GetTherapistResponse(therapist=convert.therapist(record))

    def BatchGetTherapists(
        self, request: pb.BatchGetTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetTherapistsResponse:
        found = self._store.batch_get(THERAPIST, people.batch(request.therapist_ids, "therapist_ids"))
        response = pb.BatchGetTherapistsResponse()
        convert.each(found, convert.therapist, response.therapists)
        return response

    def ListTherapists(
        self, request: pb.ListTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistsResponse:
        page = self._store.list_people(THERAPIST, people.list_therapists(request), self._pages.read(request))
        response = pb.ListTherapistsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        convert.each(page.records, convert.therapist, response.therapists)
        return response

    def UpdateTherapist(
        self, request: pb.UpdateTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UpdateTherapistResponse:
        record_id, etag, fields = people.update(people.THERAPIST, request)
        outcome = self._store.update(THERAPIST, record_id, etag, fields, call_of(request, context))
        return pb.UpdateTherapistResponse(therapist=convert.therapist(outcome.record), revision=outcome.revision)

    def DeleteTherapist(
        self, request: pb.DeleteTherapistRequest, context: grpc.ServicerContext
    ) -> pb.DeleteTherapistResponse:
        outcome = self._store.delete(THERAPIST, people.delete(request, "therapist_id"), call_of(request, context))
        return pb.DeleteTherapistResponse(
            therapist=convert.therapist(outcome.record) if outcome.record else None,
            ended_assignment_count=outcome.effect,
            revision=outcome.revision,
        )

    def UndeleteTherapist(
        self, request: pb.UndeleteTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UndeleteTherapistResponse:
        outcome = self._store.undelete(THERAPIST, people.undelete(request, "therapist_id"), call_of(request, context))
        return pb.UndeleteTherapistResponse(therapist=convert.therapist(outcome.record), revision=outcome.revision)

    def AssignPatient(
        self, request: pb.AssignPatientRequest, context: grpc.ServicerContext
    ) -> pb.AssignPatientResponse:
        outcome = self._store.assign(assignments.assign(request, self._clock()), call_of(request, context))
        return pb.AssignPatientResponse(
            assignment=convert.assignment(outcome.record), created=bool(outcome.effect), revision=outcome.revision
        )

    def UnassignPatient(
        self, request: pb.UnassignPatientRequest, context: grpc.ServicerContext
    ) -> pb.UnassignPatientResponse:
        outcome = self._store.unassign(assignments.unassign(request, self._clock()), call_of(request, context))
        return pb.UnassignPatientResponse(
            assignment=convert.assignment(outcome.record) if outcome.record else None,
            ended=bool(outcome.effect),
            revision=outcome.revision,
        )

    def ListTherapistPatients(
        self, request: pb.ListTherapistPatientsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistPatientsResponse:
        query = assignments.list_assigned(request, "therapist_id", self._clock())
        page = self._store.list_therapist_patients(query, self._pages.read(request))
        response = pb.ListTherapistPatientsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        for assignment, patient in page.records:
            entry = response.entries.add()
            convert.assignment(assignment, entry.assignment)
            convert.patient(patient, entry.patient)
        return response
