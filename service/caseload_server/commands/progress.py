"""A progress bar on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress_bar(label: str, count: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for as long as the with block; count is of all there is to do."""
    is_shown = sys.stderr.isatty()
    with click.progressbar(length=count() if is_shown else 1, label=label, file=sys.stderr, hidden=not is_shown) as bar:
        yield bar.update
