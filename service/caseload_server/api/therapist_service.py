"""TherapistService: check, ask, answer. What each RPC means is said in the contract."""

from collections.abc import Callable

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc

from caseload_server.api import convert
from caseload_server.api.call_context import call_of
from caseload_server.api.page_tokens import PageTokens
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.validation import assignments as validate_assignments
from caseload_server.validation import records as validate_records


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
        record_id, fields = validate_records.create(validate_records.THERAPIST, request)
        outcome = self._store.create(THERAPIST, record_id, fields, call_of(request, context))
        return pb.CreateTherapistResponse(therapist=convert.therapist(outcome.record), revision=outcome.revision)

    def GetTherapist(self, request: pb.GetTherapistRequest, context: grpc.ServicerContext) -> pb.GetTherapistResponse:
        record = self._store.get(THERAPIST, validate_records.record_id(request.therapist_id, "therapist_id"))
        return pb.GetTherapistResponse(therapist=convert.therapist(record))

    def BatchGetTherapists(
        self, request: pb.BatchGetTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetTherapistsResponse:
        found = self._store.batch_get(THERAPIST, validate_records.batch(request.therapist_ids, "therapist_ids"))
        response = pb.BatchGetTherapistsResponse()
        convert.each(found, convert.therapist, response.therapists)
        return response

    def ListTherapists(
        self, request: pb.ListTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistsResponse:
        page = self._store.list_people(THERAPIST, validate_records.list_therapists(request), self._pages.read(request))
        response = pb.ListTherapistsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        convert.each(page.records, convert.therapist, response.therapists)
        return response

    def UpdateTherapist(
        self, request: pb.UpdateTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UpdateTherapistResponse:
        record_id, etag, fields = validate_records.update(validate_records.THERAPIST, request)
        outcome = self._store.update(THERAPIST, record_id, etag, fields, call_of(request, context))
        return pb.UpdateTherapistResponse(therapist=convert.therapist(outcome.record), revision=outcome.revision)

    def DeleteTherapist(
        self, request: pb.DeleteTherapistRequest, context: grpc.ServicerContext
    ) -> pb.DeleteTherapistResponse:
        outcome = self._store.delete(
            THERAPIST, validate_records.delete(request, "therapist_id"), call_of(request, context)
        )
        return pb.DeleteTherapistResponse(
            therapist=convert.therapist(outcome.record) if outcome.record else None,
            ended_assignment_count=outcome.ended_count,
            revision=outcome.revision,
        )

    def UndeleteTherapist(
        self, request: pb.UndeleteTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UndeleteTherapistResponse:
        record_id = validate_records.undelete(request, "therapist_id")
        outcome = self._store.undelete(THERAPIST, record_id, call_of(request, context))
        return pb.UndeleteTherapistResponse(therapist=convert.therapist(outcome.record), revision=outcome.revision)

    def AssignPatient(
        self, request: pb.AssignPatientRequest, context: grpc.ServicerContext
    ) -> pb.AssignPatientResponse:
        outcome = self._store.assign(validate_assignments.assign(request, self._clock()), call_of(request, context))
        return pb.AssignPatientResponse(
            assignment=convert.assignment(outcome.record), created=outcome.created, revision=outcome.revision
        )

    def UnassignPatient(
        self, request: pb.UnassignPatientRequest, context: grpc.ServicerContext
    ) -> pb.UnassignPatientResponse:
        outcome = self._store.unassign(validate_assignments.unassign(request, self._clock()), call_of(request, context))
        return pb.UnassignPatientResponse(
            assignment=convert.assignment(outcome.record) if outcome.record else None,
            ended=outcome.ended,
            revision=outcome.revision,
        )

    def ListTherapistPatients(
        self, request: pb.ListTherapistPatientsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistPatientsResponse:
        query = validate_assignments.list_assigned(request, "therapist_id", self._clock())
        page = self._store.list_therapist_patients(query, self._pages.read(request))
        response = pb.ListTherapistPatientsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        for assignment, patient in page.records:
            entry = response.entries.add()
            convert.assignment(assignment, entry.assignment)
            convert.patient(patient, entry.patient)
        return response
