"""The synchronous client of Caseload: one channel to all instances, with deadlines, retries and request ids.

caseload.client.aio is the client for asyncio.
"""

from caseload.client.channel import Caseload, connect
from caseload.client.errors import ErrorDetails, error_info
from caseload.client.metadata import on_behalf_of
from caseload.client.pages import pages
from caseload.client.reasons import Reason

__all__ = ["Caseload", "ErrorDetails", "Reason", "connect", "error_info", "on_behalf_of", "pages"]
