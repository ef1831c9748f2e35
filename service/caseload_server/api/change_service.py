"""ChangeService: check, ask, answer. What each RPC means is said in the contract."""

from collections.abc import Iterator

import grpc
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import change_service_pb2_grpc as pb_grpc

from caseload_server.api import convert
from caseload_server.api.watches import Watches
from caseload_server.domain.limits import MAX_WATCH_MESSAGE_BYTES, MAX_WATCH_MESSAGE_SETS
from caseload_server.store import RelationshipStore
from caseload_server.validation import changes as validate_changes
from caseload_server.validation import rules


class ChangeServicer(pb_grpc.ChangeServiceServicer):
    """What changed, when, and by whom."""

    def __init__(self, store: RelationshipStore, watches: Watches) -> None:
        """Args: watches, the places for watches, and what wakes them."""
        self._store = store
        self._watches = watches

    def ListChanges(self, request: pb.ListChangesRequest, context: grpc.ServicerContext) -> pb.ListChangesResponse:
        query, size = validate_changes.query(request), rules.page_size(request.page_size)
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
        query = validate_changes.query(request)
        with self._watches.open(context) as watch:
            after = request.after_revision or self._store.keys.revision(self._store.head())
            while True:
                page = self._store.list_changes(query, after, MAX_WATCH_MESSAGE_SETS, MAX_WATCH_MESSAGE_BYTES)
                after = page.through
                if page.change_sets or watch.is_silent():
                    yield from watch.sending(
                        pb.WatchChangesResponse(
                            change_sets=map(convert.change_set, page.change_sets), through_revision=after
                        )
                    )
                if after == page.head and not watch.wait_beyond(self._store.keys.number(after)):
                    return
