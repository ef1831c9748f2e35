"""Several statements in one round trip, and what is left after one of them fails."""

from collections.abc import Iterator

import psycopg
import pytest
from caseload_server.store.backends.postgres import pipeline as module
from caseload_server.store.backends.postgres.connection import connect
from caseload_server.store.backends.postgres.pipeline import EarlierStatementFailed, StatementPipeline
from caseload_server.store.backends.protocol import Value

ADD = "INSERT INTO purged (kind, record_id) VALUES ('patient', :id)"
IDS = "SELECT record_id FROM purged ORDER BY record_id"


@pytest.fixture
def pipeline(postgres_url: str) -> Iterator[StatementPipeline]:
    with connect(postgres_url) as connection:
        yield StatementPipeline(connection)


def test_values_of_every_type_arrive_unchanged(pipeline: StatementPipeline) -> None:
    values: dict[str, Value] = {"text": "Zoë 'x' %s \\", "number": -(2**63), "bytes": b"\x00\xff", "nothing": None}
    pipeline.add("SELECT :text, :number, :bytes, CAST(:nothing AS TEXT), :text", values)
    assert pipeline.flush() == [("Zoë 'x' %s \\", -(2**63), b"\x00\xff", None, "Zoë 'x' %s \\")]


def test_a_text_with_a_null_character_is_refused_and_not_cut(pipeline: StatementPipeline) -> None:
    pipeline.add(ADD, {"id": "a\0b"})
    with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
        pipeline.flush()
    pipeline.add(IDS)
    assert pipeline.flush() == []


def test_all_statements_run_in_their_order_and_the_rows_of_the_last_return(pipeline: StatementPipeline) -> None:
    for number in range(30):
        pipeline.add(ADD, {"id": f"{number:02}"})
    pipeline.add(IDS)
    assert pipeline.flush() == [(f"{number:02}",) for number in range(30)]
    assert pipeline.flush() == []


def test_after_a_failed_statement_no_later_one_runs_and_the_connection_stays_usable(
    pipeline: StatementPipeline,
) -> None:
    pipeline.add("BEGIN")
    for record_id in ("a", "a", "b"):
        pipeline.add(ADD, {"id": record_id})
    with pytest.raises(psycopg.errors.UniqueViolation):
        pipeline.flush()
    pipeline.add("ROLLBACK")
    pipeline.add(ADD, {"id": "c"})
    pipeline.add(IDS)
    assert pipeline.flush() == [("c",)]


def test_a_failure_is_told_apart_by_the_mark(pipeline: StatementPipeline) -> None:
    for failing, error in (("before", EarlierStatementFailed), ("after", psycopg.errors.UndefinedTable)):
        pipeline.add("SELECT * FROM nowhere" if failing == "before" else "SELECT 1")
        pipeline.mark()
        pipeline.add("SELECT * FROM nowhere" if failing == "after" else "SELECT 1")
        with pytest.raises(error):
            pipeline.flush()


def test_what_was_queued_after_the_mark_can_be_dropped(pipeline: StatementPipeline) -> None:
    pipeline.add(ADD, {"id": "kept"})
    pipeline.mark()
    pipeline.add(ADD, {"id": "dropped"})
    pipeline.drop_unsent()
    pipeline.add(IDS)
    assert pipeline.flush() == [("kept",)]


def test_more_bytes_than_the_buffers_of_the_network_hold_are_sent(pipeline: StatementPipeline) -> None:
    size = 1_000_000
    for _ in range(20):
        pipeline.add("SELECT :text", {"text": "x" * size})
    [(answered,)] = pipeline.flush()
    assert answered == "x" * size


@pytest.mark.slow
def test_a_large_statement_behind_one_that_takes_long_does_not_break_the_connection(postgres_url: str) -> None:
    with connect(f"{postgres_url}?tcp_user_timeout=1000") as connection:
        pipeline = StatementPipeline(connection)
        pipeline.restart("BEGIN")
        pipeline.add("INSERT INTO purged (kind, record_id) SELECT 'patient', 'slow' || pg_sleep(3)")
        pipeline.add(ADD, {"id": "x" * 2000})
        pipeline.add("UPDATE purged SET record_id = :id WHERE record_id = 'none'", {"id": "y" * 3_000_000})
        pipeline.add("SELECT COUNT(*) FROM purged")
        assert pipeline.flush() == [(2,)]


def test_a_failure_in_a_later_part_is_that_of_its_statement(pipeline: StatementPipeline) -> None:
    pipeline.restart("BEGIN")
    pipeline.add(ADD, {"id": "a"})
    pipeline.add("UPDATE purged SET record_id = :id WHERE record_id = 'none'", {"id": "y" * 100_000})
    pipeline.add("INSERT INTO purged (kind, record_id) VALUES ('nobody', 'b')")
    pipeline.mark()
    pipeline.add("SELECT 1")
    with pytest.raises(EarlierStatementFailed) as caught:
        pipeline.flush()
    assert caught.value.sql == b"INSERT INTO purged (kind, record_id) VALUES ('nobody', 'b')"
    assert isinstance(caught.value.error, psycopg.errors.CheckViolation)


def test_statements_beyond_the_limit_run_without_being_prepared(
    pipeline: StatementPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_PREPARED", 3)
    for number in range(8):
        pipeline.add(f"SELECT {number} + :value", {"value": 1})
        assert pipeline.flush() == [(number + 1,)]
    pipeline.add("SELECT count(*) FROM pg_prepared_statements")
    assert pipeline.flush() == [(3,)]


def test_a_lost_connection_is_an_error_without_a_state_or_the_servers_own(pipeline: StatementPipeline) -> None:
    pipeline.add("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg.OperationalError):
        pipeline.flush()
    pipeline.add("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        pipeline.flush()
