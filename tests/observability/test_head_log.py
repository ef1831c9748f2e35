"""The head of the change log in the log of events."""

from collections.abc import Iterator
from typing import Any

from caseload_server.domain import errors
from caseload_server.domain.results import LogHead
from caseload_server.observability.head_log import INTERVAL_SECONDS, HeadLog
from caseload_server.rpc.server import CaseloadServer
from caseload_server.store import THERAPIST
from structlog.testing import capture_logs

from tests.store.store_calls import make
from tests.support.waiting import eventually

ONE, TWO = LogHead(1, b"\x01" * 32), LogHead(2, b"\x02" * 32)


def lines(heads: Iterator[LogHead | None], looks: int) -> list[tuple[int, str]]:
    """What is logged in a number of minutes. None is a database that does not answer."""

    def read_head() -> LogHead:
        head = next(heads)
        if head is None:
            raise errors.StoreUnavailable
        return head

    log = HeadLog(read_head)
    with capture_logs() as events:
        for _ in range(looks):
            log.log_head()
    assert all(event["event"] == "change log head" and event["log_level"] == "info" for event in events)
    return [(event["revision"], event["hash"]) for event in events]


def test_each_new_head_is_logged_once() -> None:
    assert lines(iter([ONE, ONE, TWO, TWO]), 4) == [(1, "01" * 32), (2, "02" * 32)]


def test_a_database_that_does_not_answer_is_tried_again() -> None:
    assert lines(iter([None, ONE, None, None, ONE, TWO]), 6) == [(1, "01" * 32), (2, "02" * 32)]


def test_the_head_is_logged_from_time_to_time_until_the_stop() -> None:
    with capture_logs() as events:
        log = HeadLog(lambda: LogHead(len(events), bytes(32)), interval_seconds=0.001)
        log.start()
        eventually(lambda: len(events) >= 3)
        log.stop()
    assert not log._thread.is_alive()


def test_a_server_logs_the_head_of_its_store(server: CaseloadServer) -> None:
    assert server._head_log._thread.is_alive()
    assert server._head_log._interval_seconds == INTERVAL_SECONDS == 60
    store: Any = server.store
    make(store, THERAPIST, "t")
    with capture_logs() as events:
        server._head_log.log_head()
    head = server.store.log_head()
    assert [(event["revision"], event["hash"]) for event in events] == [(1, head.hash.hex())]
