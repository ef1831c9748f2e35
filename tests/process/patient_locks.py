"""`caseload`, with writes that wait for the database's lock as long as a test holds it."""

from service.store import connections, postgres, sqlite

sqlite._BUSY_SECONDS = connections.PLACE_SECONDS = 10_000.0  # type: ignore[misc]
postgres._SESSION = postgres._SESSION.replace("lock_timeout=3s", "lock_timeout=0")  # type: ignore[misc]

from service.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
