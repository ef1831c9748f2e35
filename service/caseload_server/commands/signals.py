"""Commands that signals can interrupt at any time, and that clean up before they exit."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import apsw
import click

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_PROGRESS_STEPS: Final = 10_000
"""SQLite virtual machine steps between two checks for a signal. Without the checks, Python handles a signal only after
the statement has ended. https://www.sqlite.org/c3ref/progress_handler.html"""


class InterruptibleCommand(click.Command):
    """A command that cleans up on SIGINT and SIGTERM. Its exit code is then 128 plus the number of the signal."""

    def invoke(self, ctx: click.Context) -> Any:
        apsw.connection_hooks.append(lambda connection: connection.set_progress_handler(lambda: False, _PROGRESS_STEPS))
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # shells ignore SIGINT in background jobs
                signal.signal(number, _interrupt)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            click.echo("caseload: interrupted", err=True)
            raise click.exceptions.Exit(128 + interrupt.args[0]) from None


@contextmanager
def defer_signals() -> Iterator[Callable[[], None]]:
    """Defers signals in a with block, for work whose steps must not be interrupted.

    Yields: a function that delivers the deferred signals. Call it between two steps.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def deliver_signals() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    try:
        yield deliver_signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _interrupt(number: int, _: object) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    raise KeyboardInterrupt(number)
