"""The real server for the tests of callers. With pytest, use the fixtures `caseload_server` and `caseload_store`."""

from caseload.testing.server import CaseloadForTests

__all__ = ["CaseloadForTests"]
