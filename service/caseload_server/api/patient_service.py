"""PatientService: each method validates the request, calls the store and converts the result."""

from collections.abc import Callable

import grpc
from caseload.v1 import patient_service_pb2 as pb
from caseload.v1 import patient_service_pb2_grpc as pb_grpc

from caseload_server import validation as validate
from caseload_server.api import convert
from caseload_server.api.call_context import call_context, caller_may_read
from caseload_server.api.page_tokens import PageTokens
from caseload_server.store import PATIENT, PATIENT_HISTORY, RelationshipStore


class PatientServicer(pb_grpc.PatientServiceServicer):
    """Serves patients and their assignments."""

    def __init__(self, store: RelationshipStore, page_tokens: PageTokens, clock: Callable[[], int]) -> None:
        """Args: clock, returns microseconds since 1970 (UTC)."""
        self._store = store
        self._page_tokens = page_tokens
        self._clock = clock

    def CreatePatient(
        self, request: pb.CreatePatientRequest, context: grpc.ServicerContext
    ) -> pb.CreatePatientResponse:
        record_id, fields = validate.create_patient(request, self._clock())
        result = self._store.create(PATIENT, record_id, fields, call_context(request, context))
        return pb.CreatePatientResponse(patient=convert.patient(result.record), revision=result.revision)

    def BatchCreatePatients(
        self, request: pb.BatchCreatePatientsRequest, context: grpc.ServicerContext
    ) -> pb.BatchCreatePatientsResponse:
        batch = validate.batch_create_patients(request, self._clock())
        result = self._store.batch_create(PATIENT, batch, call_context(request, context))
        response = pb.BatchCreatePatientsResponse(revision=result.revision)
        convert.add_all(result.records, convert.patient, response.patients)
        return response

    def GetPatient(self, request: pb.GetPatientRequest, context: grpc.ServicerContext) -> pb.GetPatientResponse:
        record = self._store.get(PATIENT, validate.record_id(request.patient_id, "patient_id"))
        response = pb.GetPatientResponse()
        convert.patient(record, response.patient)
        return response

    def BatchGetPatients(
        self, request: pb.BatchGetPatientsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetPatientsResponse:
        records = self._store.batch_get(PATIENT, validate.batch_ids(request.patient_ids, "patient_ids"))
        response = pb.BatchGetPatientsResponse()
        convert.add_all(records, convert.patient, response.patients)
        return response

    def ListPatients(self, request: pb.ListPatientsRequest, context: grpc.ServicerContext) -> pb.ListPatientsResponse:
        page = self._store.list_records(
            PATIENT, validate.list_patients(request, self._clock()), self._page_tokens.parse(request)
        )
        response = pb.ListPatientsResponse(
            next_page_token=self._page_tokens.issue(request, page.next_after, page.next_after_key),
            revision=page.revision,
            total_size=page.total_size,
        )
        convert.add_all(page.records, convert.patient, response.patients)
        return response

    def UpdatePatient(
        self, request: pb.UpdatePatientRequest, context: grpc.ServicerContext
    ) -> pb.UpdatePatientResponse:
        order = validate.update_patient(request, self._clock())
        result = self._store.update(PATIENT, order, call_context(request, context))
        return pb.UpdatePatientResponse(
            patient=convert.patient(result.record),
            ended_assignment_count=result.ended_count,
            revision=result.revision,
        )

    def DeletePatient(
        self, request: pb.DeletePatientRequest, context: grpc.ServicerContext
    ) -> pb.DeletePatientResponse:
        order = validate.delete(request, "patient_id")
        result = self._store.delete(PATIENT, order, call_context(request, context))
        return pb.DeletePatientResponse(
            patient=convert.patient(result.record) if result.record else None,
            ended_assignment_count=result.ended_count,
            revision=result.revision,
        )

    def UndeletePatient(
        self, request: pb.UndeletePatientRequest, context: grpc.ServicerContext
    ) -> pb.UndeletePatientResponse:
        record_id = validate.undelete(request, "patient_id")
        call = call_context(request, context)
        result = self._store.undelete(PATIENT, record_id, call, release_identifiers=request.release_identifiers)
        return pb.UndeletePatientResponse(patient=convert.patient(result.record), revision=result.revision)

    def MergePatients(
        self, request: pb.MergePatientsRequest, context: grpc.ServicerContext
    ) -> pb.MergePatientsResponse:
        order = validate.merge_patients(request)._replace(may_compare=caller_may_read())
        result = self._store.merge(order, call_context(request, context))
        response = pb.MergePatientsResponse(primary_demoted=result.primary_demoted, revision=result.revision)
        convert.patient(result.source, response.source)
        convert.patient(result.target, response.target)
        convert.add_all(result.ended, convert.assignment, response.ended)
        convert.add_all(result.active, convert.assignment, response.active)
        return response

    def UnmergePatients(
        self, request: pb.UnmergePatientsRequest, context: grpc.ServicerContext
    ) -> pb.UnmergePatientsResponse:
        result = self._store.unmerge(validate.unmerge_patients(request), call_context(request, context))
        response = pb.UnmergePatientsResponse(revision=result.revision)
        convert.patient(result.source, response.source)
        if result.target:
            convert.patient(result.target, response.target)
        return response

    def AssignTherapist(
        self, request: pb.AssignTherapistRequest, context: grpc.ServicerContext
    ) -> pb.AssignTherapistResponse:
        result = self._store.assign(validate.assign(request, self._clock()), call_context(request, context))
        return pb.AssignTherapistResponse(
            assignment=convert.assignment(result.record),
            created=result.created,
            revision=result.revision,
            demoted=convert.assignment(result.demoted) if result.demoted else None,
        )

    def UnassignTherapist(
        self, request: pb.UnassignTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UnassignTherapistResponse:
        result = self._store.unassign(validate.unassign(request, self._clock()), call_context(request, context))
        return pb.UnassignTherapistResponse(
            assignment=convert.assignment(result.record) if result.record else None,
            ended=result.ended,
            revision=result.revision,
        )

    def ListPatientTherapists(
        self, request: pb.ListPatientTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.ListPatientTherapistsResponse:
        query = validate.list_caseload(request, "patient_id", self._clock())
        page = self._store.list_patient_therapists(query, self._page_tokens.parse(request))
        response = pb.ListPatientTherapistsResponse(
            next_page_token=self._page_tokens.issue(request, page.next_after, page.next_after_key),
            revision=page.revision,
            total_size=page.total_size,
        )
        for assignment, therapist in page.records:
            entry = response.entries.add()
            convert.assignment(assignment, entry.assignment)
            convert.therapist(therapist, entry.therapist)
        return response

    def ListPatientVersions(
        self, request: pb.ListPatientVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListPatientVersionsResponse:
        record_id = validate.record_id(request.patient_id, "patient_id")
        page = self._store.list_versions(PATIENT_HISTORY, record_id, self._page_tokens.parse(request))
        response = pb.ListPatientVersionsResponse(next_page_token=self._page_tokens.issue(request, page.next_after))
        convert.version_page(page, convert.patient, "patient", response)
        return response
