"""Signals: those that stop or reload the server, and those that interrupt a command."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import apsw
import click
import structlog

from caseload_server.commands.standard_streams import print_notice

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGXCPU)
_RELOAD_SIGNAL: Final = signal.SIGHUP
_WAITED_FOR: Final = (*_STOP_SIGNALS, _RELOAD_SIGNAL)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""They interrupt a command other than serve."""
_DEFERRED: Final = (*_SIGNALS, signal.SIGALRM)
"""The same signals, and the one that repeats an interrupt."""
_PROGRESS_STEPS: Final = 10_000
"""SQLite virtual machine steps between two checks for a signal. Without the checks, Python handles a signal only after
the statement has ended. https://www.sqlite.org/c3ref/progress_handler.html"""
_AGAIN_SECONDS: Final = 0.01
_log = structlog.get_logger()


def block_stop_signals() -> None:
    """Blocks the signals that `wait_for_stop` waits for.

    They are not handled: a handler that takes a lock can deadlock if two signals arrive.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)


def wait_for_stop(reload: Callable[[], object]) -> None:
    """Waits for a signal to stop. Calls `reload` for each SIGHUP, unless the terminal of the server was closed."""
    terminal = next((descriptor for descriptor in range(3) if os.isatty(descriptor)), None)
    while signal.sigwait(_WAITED_FOR) == _RELOAD_SIGNAL:
        if terminal is not None and not os.isatty(terminal):
            return
        try:
            reload()
        except RuntimeError:  # no thread can be started: the machine has reached a limit, and the server must not end
            _log.error("reload not started")


class InterruptibleCommand(click.Command):
    """A command that cleans up on SIGINT, SIGTERM, SIGHUP and SIGQUIT. It then exits with 128 plus the number."""

    def invoke(self, ctx: click.Context) -> Any:
        apsw.connection_hooks.append(lambda connection: connection.set_progress_handler(lambda: False, _PROGRESS_STEPS))
        for number in _SIGNALS:
            # Shells ignore SIGINT in background jobs, and nohup SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        sys.unraisablehook = _interrupt_again
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            print_notice("caseload: interrupted")
            raise click.exceptions.Exit(128 + interrupt.args[0]) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def defer_signals() -> Iterator[Callable[[], None]]:
    """Defers signals in a with block, for work whose steps must not be interrupted.

    Yields: a function that delivers the deferred signals. Call it between two steps.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRED)

    def deliver_signals() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRED)

    try:
        yield deliver_signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    while frame:
        if frame.f_code is _interrupt_again.__code__:  # Python ignores what is raised while that runs
            _interrupt_later(number)
            return
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def _interrupt_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Interrupts once more, a moment later: Python ignores what a destructor or a callback of the import system raises.

    https://docs.python.org/3/library/sys.html#sys.unraisablehook
    """
    if not isinstance(ignored.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    [number] = ignored.exc_value.args
    _interrupt_later(number)


def _interrupt_later(number: int) -> None:
    """Interrupts after _AGAIN_SECONDS, and again if Python would still ignore it then."""
    signal.signal(signal.SIGALRM, lambda _, frame: _interrupt(number, frame))
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
