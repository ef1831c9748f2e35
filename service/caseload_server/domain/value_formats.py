"""The formats of stored values that are no ids. Requests, imports and `caseload verify` share them."""

import re
from typing import Final

CODE_PATTERN: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""A specialty or a focus, in kebab-case."""
PHONE_PATTERN: Final = re.compile(r"\+[1-9][0-9]{1,14}")
"""A phone number (E.164)."""
EMAIL_PATTERN: Final = re.compile(r"[^\s@]+@[^\s@]+")
"""An e-mail address, as far as the server checks it."""
