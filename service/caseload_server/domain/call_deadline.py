"""The time at which the current call's reads end."""

import math
from contextvars import ContextVar
from typing import Final

read_deadline: Final[ContextVar[float]] = ContextVar("read_deadline", default=math.inf)
"""By time.monotonic(), in seconds. Infinity outside a call, such as in a command."""
