"""AssignmentService: check, ask, answer. What each RPC means is said in the contract."""

from collections.abc import Callable

import grpc
from caseload.v1 import assignment_service_pb2 as pb
from caseload.v1 import assignment_service_pb2_grpc as pb_grpc

from caseload_server.api import convert
from caseload_server.api.call_context import call_of
from caseload_server.api.page_tokens import PageTokens
from caseload_server.store import RelationshipStore
from caseload_server.validation import assignments as validate_assignments
from caseload_server.validation import records as validate_records


class AssignmentServicer(pb_grpc.AssignmentServiceServicer):
    """The assignments themselves, for callers that start from neither side."""

    def __init__(self, store: RelationshipStore, pages: PageTokens, clock: Callable[[], int]) -> None:
        """Args: clock, the time in microseconds since 1970 (UTC)."""
        self._store = store
        self._pages = pages
        self._clock = clock

    def GetAssignment(
        self, request: pb.GetAssignmentRequest, context: grpc.ServicerContext
    ) -> pb.GetAssignmentResponse:
        record = self._store.get_assignment(validate_records.record_id(request.assignment_id, "assignment_id"))
        return pb.GetAssignmentResponse(assignment=convert.assignment(record))

    def ListAssignments(
        self, request: pb.ListAssignmentsRequest, context: grpc.ServicerContext
    ) -> pb.ListAssignmentsResponse:
        query = validate_assignments.list_assignments(request, self._clock())
        page = self._store.list_assignments(query, self._pages.read(request))
        response = pb.ListAssignmentsResponse(
            next_page_token=self._pages.make(request, page.next_after), revision=page.revision
        )
        convert.each(page.records, convert.assignment, response.assignments)
        return response

    def UpdateAssignment(
        self, request: pb.UpdateAssignmentRequest, context: grpc.ServicerContext
    ) -> pb.UpdateAssignmentResponse:
        assignment_id, etag, fields = validate_assignments.correct(request, self._clock())
        outcome = self._store.correct(assignment_id, etag, fields, call_of(request, context))
        return pb.UpdateAssignmentResponse(assignment=convert.assignment(outcome.record), revision=outcome.revision)

    def CheckAssignments(
        self, request: pb.CheckAssignmentsRequest, context: grpc.ServicerContext
    ) -> pb.CheckAssignmentsResponse:
        pairs, at_us = validate_assignments.check(request, self._clock())
        checks, revision = self._store.check_assignments(pairs, at_us)
        response = pb.CheckAssignmentsResponse(revision=revision)
        convert.each(checks, convert.check, response.results)
        return response

    def TransferPatients(
        self, request: pb.TransferPatientsRequest, context: grpc.ServicerContext
    ) -> pb.TransferPatientsResponse:
        outcome = self._store.transfer(validate_assignments.transfer(request), call_of(request, context))
        response = pb.TransferPatientsResponse(revision=outcome.revision)
        convert.each(outcome.ended, convert.assignment, response.ended)
        convert.each(outcome.active, convert.assignment, response.active)
        return response
