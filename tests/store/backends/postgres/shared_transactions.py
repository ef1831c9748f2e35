"""Writes of a test that share a transaction."""

import threading
from collections.abc import Callable
from typing import Any

from caseload_server.store import RelationshipStore
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.protocol import Sharing, Transaction


def shared(store: RelationshipStore, work: Callable[[Transaction], Any]) -> Any:
    return store._database.write_with_tail(work, unchanged, Sharing())


def starting(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread
