"""`caseload`, but COMMIT does nothing: a kill loses every acknowledged write."""

from typing import Any

import apsw
from caseload_server.commands import main


class UncommittedConnection(apsw.Connection):
    """Leaves the transaction of its first write open, and adds later writes to it."""

    def execute(self, statements: str, *arguments: Any, **attributes: Any) -> apsw.Cursor:
        if statements in ("COMMIT", "ROLLBACK") or (statements == "BEGIN IMMEDIATE" and self.in_transaction):
            statements = "SELECT 1"
        return super().execute(statements, *arguments, **attributes)


if __name__ == "__main__":
    apsw.Connection = UncommittedConnection  # type: ignore[misc]
    main.main()
