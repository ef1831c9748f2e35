"""The Caseload client: one channel to all instances, with deadlines, retries, request ids and credentials."""

from caseload.client.channel import Caseload, connect
from caseload.client.errors import ErrorDetails, error_info

__all__ = ["Caseload", "ErrorDetails", "connect", "error_info"]
