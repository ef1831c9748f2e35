"""The real server for tests of callers. In pytest, use the fixtures `caseload_server` and `caseload_store`."""

from caseload.testing.server import CaseloadForTests

__all__ = ["CaseloadForTests"]
