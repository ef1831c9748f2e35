"""`caseload`, with writes that wait for the database's lock without a limit."""

from caseload_server.store.backends.postgres import commit_turn, connection_pool, pipeline
from caseload_server.store.backends.postgres import connection as postgres
from caseload_server.store.backends.sqlite import connection as sqlite

sqlite._BUSY_TIMEOUT_SECONDS = connection_pool.ACQUIRE_TIMEOUT_SECONDS = 10_000.0  # type: ignore[misc]
pipeline.TIMEOUT_SECONDS = 10_000.0  # type: ignore[misc]
commit_turn._TIMEOUT_SECONDS = 10_000.0  # type: ignore[misc]
postgres.WRITES.defaults["lock_timeout"] = "0"

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
