"""Search keys of names."""

import re
import unicodedata
from itertools import filterfalse

_WORD_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015]+")
_UNDECOMPOSED = str.maketrans("ıłøđ", "ilod")  # Unicode does not decompose a stroke or a missing dot
LAST_CHARACTER = "\U0010ffff"
"""Appended to a prefix, it gives the upper bound of the words with that prefix."""


def name_words(name: str) -> list[str]:
    """Returns the distinct words of a name, case-folded and without accents. White space and hyphens separate words.

    "Zoë Müller-Lüdenscheidt" gives zoe, muller, ludenscheidt. The database does not fold names, because SQLite folds
    ASCII only.
    """
    folded = name.lower() if name.isascii() else _strip_accents(_strip_accents(name.casefold()).casefold())
    if folded.isascii():  # gives the same result in a fifth of the time
        return sorted(set(folded.replace("-", " ").split()))
    folded = folded.translate(_UNDECOMPOSED)
    return sorted({word for word in _WORD_SEPARATORS.split(folded) if word})


def record_words(display_name: str, aliases: list[str]) -> list[str]:
    """Returns the distinct words of all names of a record."""
    if not aliases:
        return name_words(display_name)
    return sorted({word for name in (display_name, *aliases) for word in name_words(name)})


def _strip_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(filterfalse(unicodedata.combining, unicodedata.normalize("NFKD", text)))
