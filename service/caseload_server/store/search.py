"""Words and keys by which people are found and ordered. Requests and records make them in the same way."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, Final

from caseload_server.domain import limits, text_folding
from caseload_server.domain.records import Patient, Therapist
from caseload_server.domain.text_folding import SPACELESS, SYMBOL, WORD, tokens

LAST_CHARACTER = "\U0010ffff"
"""Appended to a prefix, it gives the upper bound of the words with that prefix."""
RULES_VERSION: Final = 2
"""The number of the rules of this module. Records with words and keys by other rules get them again. A new number needs
a migration, because the indexes *_without_keys have it too."""
KEY_COLUMNS: Final = ("name_key", "email_key", "keyed_etag")
"""The columns of a therapist or a patient with keys."""
_MAX_WORD: Final = 64
"""Characters of a word that are kept."""
_MAX_SUFFIX: Final = 16
"""Characters of the rest of a name without spaces that are kept."""
_MAX_WORDS: Final = 256
"""Words of a record that are kept."""
_PREFIX_WORDS: Final = (
    "d l m n o s t abd abu al ap bin da dal dall dalla de dei del dell della den der des di do dos du el fitz ibn la"
    " las le lo los mac mc saint san sant santa st ste ten ter van vande vander vom von zu zum zur"
)
_PREFIXES: Final = frozenset(_PREFIX_WORDS.split())
"""What stands before a name with an apostrophe, a space or nothing between them."""
_SIMPLE_NAME = re.compile(r"[A-Z]?[a-z]{2,63}(?: [A-Z]?[a-z]{2,63})*")
"""Most names. Their words take a third of the time."""
_CAPITALS = re.compile(r"\b[A-Z]{2,3}\b")
_INNER_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a part of a word begins, as in McMock and PhD."""
_ABBREVIATION = re.compile(r"(?<![^\s.\u00b7])[^\s.\u00b7]+(?:[.\u00b7][^\s.\u00b7]+)+")
"""Words with full stops or middle dots between them, as in Ph.D. and Gal\u00b7la."""
_WITHOUT_DOTS: Final = str.maketrans("", "", ".\u00b7")
_ARTICLE: Final = "\u0627\u0644"
"""The Arabic article, with which the second part of many names begins. They are written as one word or two."""
_FIRST_ARTICLE: Final = 3
"""The article is not looked for before this letter of a word, so that names such as Khalid stay whole."""
_ARABIC_FIRST, _ARABIC_LAST = "\u0620", "\u08ff"


def record_words(display_name: str, aliases: list[str]) -> list[str]:
    """Returns the distinct words of all names of a record, by which prefixes are searched, at most 256."""
    if not aliases and _SIMPLE_NAME.fullmatch(display_name):
        simple = {*display_name.lower().split()}
        if simple.isdisjoint(_PREFIXES):
            return sorted(simple)
    words: dict[str, None] = {}
    for name in (display_name, *aliases):
        if len(words) < _MAX_WORDS:
            words |= dict.fromkeys(_stored_words(name))
    return sorted(list(words)[:_MAX_WORDS])


def typed_words(text: str) -> list[str]:
    """Returns the distinct words of a search. A record must have, for each, a word that begins with it.

    Symbols count only in a search without letters and digits.
    """
    typed = list(_plain_words(text))
    words = [word for word, kind in typed if kind != SYMBOL] or [word for word, _ in typed]
    cut = dict.fromkeys(word[:_MAX_WORD] for word in words)
    return [word for word in cut if not any(other != word and other.startswith(word) for other in cut)]


def keys(record: Therapist | Patient) -> dict[str, str]:
    """Returns the key columns of a record."""
    return {**keys_of(record._asdict()), "keyed_etag": keyed_etag(record.etag)}


def keys_of(columns: Mapping[str, Any]) -> dict[str, str]:
    """Returns the keys that follow from columns of a record."""
    return {key: make(columns[column]) for column, key, make in _KEYS if column in columns}


def keyed_etag(etag: str) -> str:
    """Returns what says that the words and keys of a record with an etag are current."""
    return f"{RULES_VERSION}:{etag}"


def name_key(name: str) -> str:
    """Returns the key by which lists are ordered by name."""
    if _SIMPLE_NAME.fullmatch(name):
        return name.lower()
    return " ".join(word for word, _ in _plain_words(name))[: limits.MAX_KEY_LENGTH]


def _plain_words(text: str) -> Iterator[tuple[str, str | None]]:
    """Yields words without apostrophes and hyphens, each with its kind. A typed name without spaces is cut."""
    for token, kind in tokens(text):
        if kind == SPACELESS:
            yield text_folding.spell_out("".join(text_folding.characters(token)[:_MAX_SUFFIX])), kind
            continue
        for word in token.replace("'", "").split("-"):
            if word:
                yield word, kind


def _stored_words(name: str) -> Iterator[str]:
    for capitals in _CAPITALS.findall(name):  # initials, such as JR: a search may have them apart
        yield from capitals[1:].lower()
    yield from _words_as_written(_INNER_CAPITAL.sub("-", name))
    for abbreviation in _ABBREVIATION.findall(name):
        yield from _words_as_written(abbreviation.translate(_WITHOUT_DOTS))


def _words_as_written(name: str) -> Iterator[str]:
    for kind, group in groupby(tokens(name), itemgetter(1)):
        texts = (text for text, _ in group)
        if kind == WORD:
            yield from (word[:_MAX_WORD] for word in _words(texts))
        elif kind == SPACELESS:
            yield from _suffixes("".join(texts))
        else:
            yield from texts


def _suffixes(run: str) -> Iterator[str]:
    """Yields the rest of a name without spaces from each of its characters on."""
    left = text_folding.characters(run)
    suffixes = ("".join(left[start : start + _MAX_SUFFIX]) for start in range(len(left)))
    for suffix in dict.fromkeys(suffixes):
        yield text_folding.spell_out(suffix)[:_MAX_WORD]


def _words(texts: Iterable[str]) -> Iterator[str]:
    """Yields words, each also from behind each of its apostrophes and hyphens, and joined as some people do."""
    words = []
    for text in texts:
        rests = _rests(text)
        words += rests[:1]
        yield from rests
    yield from _initials(words)
    yield from _prefixed(words)
    yield from _arabic_pairs(words)


def _rests(text: str) -> list[str]:
    parts = [part for part in text.replace("-", "'").split("'") if part]
    rests = ["".join(parts[start:]) for start in range(len(parts))]
    article = text.find(_ARTICLE, _FIRST_ARTICLE)
    if 0 < article < len(text) - len(_ARTICLE) - 1:
        rests.append(text[article:].replace("'", ""))
    return rests


def _initials(words: list[str]) -> Iterator[str]:
    """Yields initials in a row together."""
    for is_initial, group in groupby(words, lambda word: len(word) == 1):
        if is_initial and len(initials := "".join(group)) > 1:
            yield initials


def _prefixed(words: list[str]) -> Iterator[str]:
    """Yields names together with the prefixes before them, such as vandermock and dermock of van der Mock."""
    name = ""
    for word in reversed(words):
        name = word + name if name and word in _PREFIXES else word
        if name != word:
            yield name


def _arabic_pairs(words: list[str]) -> Iterator[str]:
    """Yields Arabic words together with the next one, as in Abd Allah."""
    for first, second in pairwise(words):
        if _ARABIC_FIRST <= first[0] <= _ARABIC_LAST:
            yield first + second


_KEYS: Final = (("display_name", "name_key", name_key), ("email", "email_key", text_folding.email_key))
"""The column that each key follows from, the key, and its function."""
