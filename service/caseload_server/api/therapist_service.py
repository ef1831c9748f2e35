"""TherapistService: each method validates the request, calls the store and converts the result."""

from collections.abc import Callable

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc

from caseload_server import validation as validate
from caseload_server.api import convert
from caseload_server.api.call_context import call_context
from caseload_server.api.page_tokens import PageTokens
from caseload_server.store import THERAPIST, THERAPIST_HISTORY, RelationshipStore


class TherapistServicer(pb_grpc.TherapistServiceServicer):
    """Serves therapists and their assignments."""

    def __init__(self, store: RelationshipStore, page_tokens: PageTokens, clock: Callable[[], int]) -> None:
        """Args: clock, returns microseconds since 1970 (UTC)."""
        self._store = store
        self._page_tokens = page_tokens
        self._clock = clock

    def CreateTherapist(
        self, request: pb.CreateTherapistRequest, context: grpc.ServicerContext
    ) -> pb.CreateTherapistResponse:
        record_id, fields = validate.create_therapist(request)
        result = self._store.create(THERAPIST, record_id, fields, call_context(request, context))
        return pb.CreateTherapistResponse(therapist=convert.therapist(result.record), revision=result.revision)

    def BatchCreateTherapists(
        self, request: pb.BatchCreateTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.BatchCreateTherapistsResponse:
        batch = validate.batch_create_therapists(request)
        result = self._store.batch_create(THERAPIST, batch, call_context(request, context))
        response = pb.BatchCreateTherapistsResponse(revision=result.revision)
        convert.add_all(result.records, convert.therapist, response.therapists)
        return response

    def GetTherapist(self, request: pb.GetTherapistRequest, context: grpc.ServicerContext) -> pb.GetTherapistResponse:
        record = self._store.get(THERAPIST, validate.record_id(request.therapist_id, "therapist_id"))
        response = pb.GetTherapistResponse()
        convert.therapist(record, response.therapist)
        return response

    def BatchGetTherapists(
        self, request: pb.BatchGetTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetTherapistsResponse:
        records = self._store.batch_get(THERAPIST, validate.batch_ids(request.therapist_ids, "therapist_ids"))
        response = pb.BatchGetTherapistsResponse()
        convert.add_all(records, convert.therapist, response.therapists)
        return response

    def ListTherapists(
        self, request: pb.ListTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistsResponse:
        page = self._store.list_records(THERAPIST, validate.list_therapists(request), self._page_tokens.parse(request))
        response = pb.ListTherapistsResponse(
            next_page_token=self._page_tokens.issue(request, page.next_after, page.next_after_key),
            revision=page.revision,
            total_size=page.total_size,
        )
        convert.add_all(page.records, convert.therapist, response.therapists)
        return response

    def UpdateTherapist(
        self, request: pb.UpdateTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UpdateTherapistResponse:
        order = validate.update_therapist(request)
        result = self._store.update(THERAPIST, order, call_context(request, context))
        return pb.UpdateTherapistResponse(
            therapist=convert.therapist(result.record),
            ended_assignment_count=result.ended_count,
            revision=result.revision,
        )

    def DeleteTherapist(
        self, request: pb.DeleteTherapistRequest, context: grpc.ServicerContext
    ) -> pb.DeleteTherapistResponse:
        result = self._store.delete(THERAPIST, validate.delete(request, "therapist_id"), call_context(request, context))
        return pb.DeleteTherapistResponse(
            therapist=convert.therapist(result.record) if result.record else None,
            ended_assignment_count=result.ended_count,
            revision=result.revision,
        )

    def UndeleteTherapist(
        self, request: pb.UndeleteTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UndeleteTherapistResponse:
        record_id = validate.undelete(request, "therapist_id")
        call = call_context(request, context)
        result = self._store.undelete(THERAPIST, record_id, call, release_identifiers=request.release_identifiers)
        return pb.UndeleteTherapistResponse(therapist=convert.therapist(result.record), revision=result.revision)

    def AssignPatient(
        self, request: pb.AssignPatientRequest, context: grpc.ServicerContext
    ) -> pb.AssignPatientResponse:
        result = self._store.assign(validate.assign(request, self._clock()), call_context(request, context))
        return pb.AssignPatientResponse(
            assignment=convert.assignment(result.record),
            created=result.created,
            revision=result.revision,
            demoted=convert.assignment(result.demoted) if result.demoted else None,
        )

    def UnassignPatient(
        self, request: pb.UnassignPatientRequest, context: grpc.ServicerContext
    ) -> pb.UnassignPatientResponse:
        result = self._store.unassign(validate.unassign(request, self._clock()), call_context(request, context))
        return pb.UnassignPatientResponse(
            assignment=convert.assignment(result.record) if result.record else None,
            ended=result.ended,
            revision=result.revision,
        )

    def ListTherapistPatients(
        self, request: pb.ListTherapistPatientsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistPatientsResponse:
        query = validate.list_caseload(request, "therapist_id", self._clock())
        page = self._store.list_therapist_patients(query, self._page_tokens.parse(request))
        response = pb.ListTherapistPatientsResponse(
            next_page_token=self._page_tokens.issue(request, page.next_after, page.next_after_key),
            revision=page.revision,
            total_size=page.total_size,
        )
        for assignment, patient in page.records:
            entry = response.entries.add()
            convert.assignment(assignment, entry.assignment)
            convert.patient(patient, entry.patient)
        return response

    def ListTherapistVersions(
        self, request: pb.ListTherapistVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListTherapistVersionsResponse:
        record_id = validate.record_id(request.therapist_id, "therapist_id")
        page = self._store.list_versions(THERAPIST_HISTORY, record_id, self._page_tokens.parse(request))
        response = pb.ListTherapistVersionsResponse(next_page_token=self._page_tokens.issue(request, page.next_after))
        convert.version_page(page, convert.therapist, "therapist", response)
        return response
