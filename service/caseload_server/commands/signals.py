"""Commands that can be broken off at any time, and then put away what they had begun."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import apsw
import click

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
_STEPS: Final = 10_000
"""Of a statement of SQLite, between two looks for a signal; without one it is seen when the statement ends."""


class InterruptibleCommand(click.Command):
    """On Ctrl-C and SIGTERM it puts away what it had begun; the exit code is 128 and the signal's number."""

    def invoke(self, ctx: click.Context) -> Any:
        apsw.connection_hooks.append(lambda connection: connection.set_progress_handler(lambda: False, _STEPS))
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell has its background jobs do
                signal.signal(number, _interrupt)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            click.echo("caseload: interrupted", err=True)
            raise click.exceptions.Exit(128 + interrupt.args[0]) from None


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """For work in steps that must not be broken off in the middle: a signal is seen when what is yielded is called."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def let_in() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    try:
        yield let_in
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(number: int, _: object) -> None:
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)  # a second one must not break off the putting away
    raise KeyboardInterrupt(number)
