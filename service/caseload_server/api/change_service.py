"""ChangeService: each method validates the request, reads the change log and converts the result."""

from collections.abc import Iterator

import grpc
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import change_service_pb2_grpc as pb_grpc

from caseload_server import validation as validate
from caseload_server.api import convert
from caseload_server.api.watches import Watches
from caseload_server.domain.limits import MAX_WATCH_MESSAGE_BYTES, MAX_WATCH_MESSAGE_SETS
from caseload_server.store import RelationshipStore


class ChangeServicer(pb_grpc.ChangeServiceServicer):
    """Serves the change log: what changed, when, and by whom."""

    def __init__(self, store: RelationshipStore, watches: Watches) -> None:
        """Args: watches, holds the open watches of this process."""
        self._store = store
        self._watches = watches

    def ListChanges(self, request: pb.ListChangesRequest, context: grpc.ServicerContext) -> pb.ListChangesResponse:
        query, size = validate.change_query(request), validate.page_size(request.page_size)
        page = self._store.list_changes(query, request.after_revision, size)
        return pb.ListChangesResponse(
            change_sets=map(convert.change_set, page.change_sets),
            through_revision=page.through,
            head_revision=page.head,
            oldest_revision=page.oldest,
        )

    def WatchChanges(
        self, request: pb.WatchChangesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchChangesResponse]:
        query = validate.change_query(request)
        with self._watches.open(context) as watch:
            after = request.after_revision or self._store.keys.revision(self._store.head_revision())
            while True:
                page = self._store.list_changes(query, after, MAX_WATCH_MESSAGE_SETS, MAX_WATCH_MESSAGE_BYTES)
                after = page.through
                if page.change_sets or watch.heartbeat_due():
                    yield from watch.send(
                        pb.WatchChangesResponse(
                            change_sets=map(convert.change_set, page.change_sets), through_revision=after
                        )
                    )
                if after == page.head and not watch.wait_for_newer(self._store.keys.number(after)):
                    return
