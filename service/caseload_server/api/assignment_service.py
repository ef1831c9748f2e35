"""AssignmentService: each method validates the request, calls the store and converts the result."""

from collections.abc import Callable

import grpc
from caseload.v1 import assignment_service_pb2 as pb
from caseload.v1 import assignment_service_pb2_grpc as pb_grpc

from caseload_server import validation as validate
from caseload_server.api import convert
from caseload_server.api.call_context import call_context
from caseload_server.api.page_tokens import PageTokens
from caseload_server.store import ASSIGNMENT_HISTORY, RelationshipStore


class AssignmentServicer(pb_grpc.AssignmentServiceServicer):
    """Serves assignments to callers that start from neither a therapist nor a patient."""

    def __init__(self, store: RelationshipStore, page_tokens: PageTokens, clock: Callable[[], int]) -> None:
        """Args: clock, returns microseconds since 1970 (UTC)."""
        self._store = store
        self._page_tokens = page_tokens
        self._clock = clock

    def GetAssignment(
        self, request: pb.GetAssignmentRequest, context: grpc.ServicerContext
    ) -> pb.GetAssignmentResponse:
        record = self._store.get_assignment(validate.record_id(request.assignment_id, "assignment_id"))
        response = pb.GetAssignmentResponse()
        convert.assignment(record, response.assignment)
        return response

    def ListAssignments(
        self, request: pb.ListAssignmentsRequest, context: grpc.ServicerContext
    ) -> pb.ListAssignmentsResponse:
        query = validate.list_assignments(request, self._clock())
        page = self._store.list_assignments(query, self._page_tokens.parse(request))
        response = pb.ListAssignmentsResponse(
            next_page_token=self._page_tokens.issue(request, page.next_after, page.next_after_key),
            revision=page.revision,
            total_size=page.total_size,
        )
        convert.add_all(page.records, convert.assignment, response.assignments)
        return response

    def UpdateAssignment(
        self, request: pb.UpdateAssignmentRequest, context: grpc.ServicerContext
    ) -> pb.UpdateAssignmentResponse:
        assignment_id, etag, fields = validate.update_assignment(request, self._clock())
        result = self._store.correct(assignment_id, etag, fields, call_context(request, context))
        return pb.UpdateAssignmentResponse(assignment=convert.assignment(result.record), revision=result.revision)

    def CheckAssignments(
        self, request: pb.CheckAssignmentsRequest, context: grpc.ServicerContext
    ) -> pb.CheckAssignmentsResponse:
        checks, revision = self._store.check_assignments(*validate.check_assignments(request, self._clock()))
        response = pb.CheckAssignmentsResponse(revision=revision)
        convert.add_all(checks, convert.check_result, response.results)
        return response

    def BatchAssign(self, request: pb.BatchAssignRequest, context: grpc.ServicerContext) -> pb.BatchAssignResponse:
        batch = validate.batch_assign(request, self._clock())
        result = self._store.batch_assign(batch, call_context(request, context))
        response = pb.BatchAssignResponse(revision=result.revision)
        for record, created in zip(result.records, result.created, strict=True):
            convert.assignment(record, response.results.add(created=created).assignment)
        return response

    def TransferPatients(
        self, request: pb.TransferPatientsRequest, context: grpc.ServicerContext
    ) -> pb.TransferPatientsResponse:
        order = validate.transfer_patients(request, self._clock())
        result = self._store.transfer(order, call_context(request, context))
        response = pb.TransferPatientsResponse(revision=result.revision)
        convert.add_all(result.ended, convert.assignment, response.ended)
        convert.add_all(result.active, convert.assignment, response.active)
        return response

    def ListAssignmentVersions(
        self, request: pb.ListAssignmentVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListAssignmentVersionsResponse:
        record_id = validate.record_id(request.assignment_id, "assignment_id")
        page = self._store.list_versions(ASSIGNMENT_HISTORY, record_id, self._page_tokens.parse(request))
        response = pb.ListAssignmentVersionsResponse(next_page_token=self._page_tokens.issue(request, page.next_after))
        convert.version_page(page, convert.assignment, "assignment", response)
        return response
