"""The client of Caseload for asyncio, with the same functions and defaults as caseload.client."""

from caseload.client.aio.channel import Caseload, connect
from caseload.client.aio.pages import pages
from caseload.client.errors import ErrorDetails, error_info
from caseload.client.metadata import on_behalf_of
from caseload.client.reasons import Reason

__all__ = ["Caseload", "ErrorDetails", "Reason", "connect", "error_info", "on_behalf_of", "pages"]
