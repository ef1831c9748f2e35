"""PatientService: check, ask, answer. What each RPC means is said in the contract."""

from collections.abc import Callable

import grpc
from caseload.v1 import patient_service_pb2 as pb
from caseload.v1 import patient_service_pb2_grpc as pb_grpc

from caseload_server.api import convert
from caseload_server.api.call_context import call_of
from caseload_server.api.page_tokens import PageTokens
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.validation import assignments as validate_assignments
from caseload_server.validation import records as validate_records


class PatientServicer(pb_grpc.PatientServiceServicer):
    """Patients and who they are assigned to."""

    def __init__(self, store: RelationshipStore, pages: PageTokens, clock: Callable[[], int]) -> None:
        """Args: clock, the time in microseconds since 1970 (UTC)."""
        self._store = store
        self._pages = pages
        self._clock = clock

    def CreatePatient(
        self, request: pb.CreatePatientRequest, context: grpc.ServicerContext
    ) -> pb.CreatePatientResponse:
        record_id, fields = validate_records.create(validate_records.patient_rules(self._clock()), request)
        outcome = self._store.create(PATIENT, record_id, fields, call_of(request, context))
        return pb.CreatePatientResponse(patient=convert.patient(outcome.record), revision=outcome.revision)

    def GetPatient(self, request: pb.GetPatientRequest, context: grpc.ServicerContext) -> pb.GetPatientResponse:
        record = self._store.get(PATIENT, validate_records.record_id(request.patient_id, "patient_id"))
        return pb.GetPatientResponse(patient=convert.patient(record))

    def BatchGetPatients(
        self, request: pb.BatchGetPatientsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetPatientsResponse:
        found = self._store.batch_get(PATIENT, validate_records.batch(request.patient_ids, "patient_ids"))
        response = pb.BatchGetPatientsResponse()
        convert.each(found, convert.patient, response.patients)
        return response

    def ListPatients(self, request: pb.ListPatientsRequest, context: grpc.ServicerContext) -> pb.ListPatientsResponse:
        page = self._store.list_people(PATIENT, validate_records.list_patients(request), self._pages.read(request))
        response = pb.ListPatientsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        convert.each(page.records, convert.patient, response.patients)
        return response

    def UpdatePatient(
        self, request: pb.UpdatePatientRequest, context: grpc.ServicerContext
    ) -> pb.UpdatePatientResponse:
        record_id, etag, fields = validate_records.update(validate_records.patient_rules(self._clock()), request)
        outcome = self._store.update(PATIENT, record_id, etag, fields, call_of(request, context))
        return pb.UpdatePatientResponse(patient=convert.patient(outcome.record), revision=outcome.revision)

    def DeletePatient(
        self, request: pb.DeletePatientRequest, context: grpc.ServicerContext
    ) -> pb.DeletePatientResponse:
        order = validate_records.delete(request, "patient_id")
        outcome = self._store.delete(PATIENT, order, call_of(request, context))
        return pb.DeletePatientResponse(
            patient=convert.patient(outcome.record) if outcome.record else None,
            ended_assignment_count=outcome.ended_count,
            revision=outcome.revision,
        )

    def UndeletePatient(
        self, request: pb.UndeletePatientRequest, context: grpc.ServicerContext
    ) -> pb.UndeletePatientResponse:
        record_id = validate_records.undelete(request, "patient_id")
        outcome = self._store.undelete(PATIENT, record_id, call_of(request, context))
        return pb.UndeletePatientResponse(patient=convert.patient(outcome.record), revision=outcome.revision)

    def AssignTherapist(
        self, request: pb.AssignTherapistRequest, context: grpc.ServicerContext
    ) -> pb.AssignTherapistResponse:
        outcome = self._store.assign(validate_assignments.assign(request, self._clock()), call_of(request, context))
        return pb.AssignTherapistResponse(
            assignment=convert.assignment(outcome.record), created=outcome.created, revision=outcome.revision
        )

    def UnassignTherapist(
        self, request: pb.UnassignTherapistRequest, context: grpc.ServicerContext
    ) -> pb.UnassignTherapistResponse:
        outcome = self._store.unassign(validate_assignments.unassign(request, self._clock()), call_of(request, context))
        return pb.UnassignTherapistResponse(
            assignment=convert.assignment(outcome.record) if outcome.record else None,
            ended=outcome.ended,
            revision=outcome.revision,
        )

    def ListPatientTherapists(
        self, request: pb.ListPatientTherapistsRequest, context: grpc.ServicerContext
    ) -> pb.ListPatientTherapistsResponse:
        query = validate_assignments.list_assigned(request, "patient_id", self._clock())
        page = self._store.list_patient_therapists(query, self._pages.read(request))
        response = pb.ListPatientTherapistsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        for assignment, therapist in page.records:
            entry = response.entries.add()
            convert.assignment(assignment, entry.assignment)
            convert.therapist(therapist, entry.therapist)
        return response
