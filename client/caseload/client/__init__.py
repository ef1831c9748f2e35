"""A client that does it right: deadlines, retries, a request_id in each write, credentials."""

from caseload.client.connecting import Caseload, connect
from caseload.client.refusals import Refusal, why

__all__ = ["Caseload", "Refusal", "connect", "why"]
