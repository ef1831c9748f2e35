"""What signals do from the first moment of a command: importing its modules takes most of the time of its start."""

import signal
from typing import Final

_IGNORED: Final = (
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *(signal.SIGSTKFLT, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)),
)
"""They would end a process that does nothing about them. https://man7.org/linux/man-pages/man7/signal.7.html"""


def ignore_signals() -> None:
    """Ignores the signals that mean nothing to any command, such as SIGUSR1."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)


def defer_reload() -> None:
    """Defers SIGHUP: `serve` reloads its files when it has started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def deliver_reload() -> None:
    """Delivers SIGHUP again. It ends commands that do not serve."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
