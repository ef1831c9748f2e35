"""A progress bar on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress_bar(label: str, count: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on standard error during the with block, if that is a terminal.

    Args: count, returns the total number of steps.
    Yields: a function that takes the number of steps just done.
    """
    shown = sys.stderr.isatty()
    with click.progressbar(length=count() if shown else 1, label=label, file=sys.stderr, hidden=not shown) as bar:
        yield bar.update
