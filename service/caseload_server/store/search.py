"""Words and keys by which people are found and ordered. Requests and records make them in the same way.

The databases do not fold text, because SQLite folds only ASCII, and PostgreSQL by the rules of its system.
"""

import unicodedata
from collections.abc import Iterator
from itertools import filterfalse
from typing import Final

import regex
from anyascii import anyascii

from caseload_server.domain.records import Patient, Therapist

LAST_CHARACTER = "\U0010ffff"
"""Appended to a prefix, it gives the upper bound of the words with that prefix."""
RULES_VERSION: Final = 2
"""The version of the rules of this module. Records that another version wrote get their words and keys again."""
KEY_COLUMNS: Final = ("name_key", "email_key", "keyed_etag")
"""The columns of a therapist or a patient with keys."""
_MAX_WORD: Final = 64
"""Characters of a word that are kept."""
_MAX_PART: Final = 16
"""Characters of a part of a name without spaces that are kept."""
_MAX_WORDS: Final = 256
"""Words of a record that are kept."""
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}--\u200c]+", regex.V1)
_JOINER_CHARACTERS: Final = (
    "'\u2018\u2019\u201a\u201b\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u02c8\u02ca\u02cb\u0060\u00b4\u2032\u2035\u055a"
    "\u05f3\u05f4\u07f4\u07f5\u1fbd\u1fbf\u1ffd\u1ffe\ua78b\ua78c\uff07\uff40\u200c"
)
"""Apostrophes, and the zero-width non-joiner: a word that has one is found with it and without it."""
_JOINED = str.maketrans(dict.fromkeys(_JOINER_CHARACTERS, "'"))
_SPACELESS: Final = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Script=Bopomofo}々〆ー]"
"""A character of a script that is written without spaces."""
_TOKENS = regex.compile(rf"(?P<spaceless>{_SPACELESS}+)|(?:(?!{_SPACELESS})[\p{{L}}\p{{N}}\p{{M}}'])+")
_FOLDED = str.maketrans(
    {
        **dict.fromkeys("\u0649\u06cc\u06d2", "\u064a"),  # forms of yeh
        **dict.fromkeys("\u06a9\u06aa", "\u0643"),  # of kaf
        "\u0671": "\u0627",  # of alef
        **dict.fromkeys("\u0629\u06d5\u06c1\u06be\u06c3", "\u0647"),  # teh marbuta, and forms of heh
        "\u0640": None,  # tatweel, which stretches a word
        "\u0491": "\u0433",  # Cyrillic ghe with upturn
        **{chr(katakana): chr(katakana - 0x60) for katakana in range(0x30A1, 0x30F7)},  # to hiragana
    }
)
_OTHER_LATIN = regex.compile(r"[\p{Script=Latin}--\p{ASCII}]", regex.V1)
_ASCII_SEPARATORS = str.maketrans(
    dict.fromkeys(
        map(chr, [*range(0x27), *range(0x28, 0x30), *range(0x3A, 0x41), *range(0x5B, 0x61), *range(0x7B, 0x80)]), " "
    )
)


def record_words(display_name: str, aliases: list[str]) -> list[str]:
    """Returns the distinct words of all names of a record, by which prefixes are searched, at most 256."""
    words: dict[str, None] = {}
    for name in (display_name, *aliases):
        words |= dict.fromkeys(_stored_words(name))
    return sorted(list(words)[:_MAX_WORDS])


def typed_words(text: str) -> list[str]:
    """Returns the distinct words of a search."""
    words = [
        token[:_MAX_PART] if is_spaceless else token.replace("'", "")[:_MAX_WORD]
        for token, is_spaceless in _tokens(_fold(text))
    ]
    return [word for word in dict.fromkeys(words) if word]


def keys(record: Therapist | Patient) -> dict[str, str]:
    """Returns the key columns of a record."""
    return {
        "name_key": name_key(record.display_name),
        "email_key": email_key(record.email),
        "keyed_etag": f"{RULES_VERSION}:{record.etag}",
    }


def name_key(name: str) -> str:
    """Returns the key by which lists are ordered by name."""
    return " ".join(token.replace("'", "") for token, _ in _tokens(_fold(name)))


def email_key(email: str) -> str:
    """Returns the key of an e-mail address, which is equal for addresses that differ in case."""
    return email.lower() if email.isascii() else unicodedata.normalize("NFC", email.casefold())


def identifier_key(value: str) -> str:
    """Returns the key of the value of an identifier: without invisible characters and full-width forms."""
    return value if value.isascii() else _INVISIBLE.sub("", unicodedata.normalize("NFKC", value)).strip()


def _stored_words(name: str) -> Iterator[str]:
    run, initials = "", ""
    for token, is_spaceless in [*_tokens(_fold(name)), ("", False)]:
        if is_spaceless:
            run += token
            continue
        yield from (run[start : start + _MAX_PART] for start in range(len(run)))
        run = ""
        parts = [part for part in token.split("'") if part]
        yield from ("".join(parts[start:])[:_MAX_WORD] for start in range(len(parts)))
        if len(token) == 1:
            initials += token
        else:
            if len(initials) > 1:
                yield initials
            initials = ""


def _tokens(folded: str) -> Iterator[tuple[str, bool]]:
    """Yields the words of a folded text, each with whether its script is written without spaces."""
    if folded.isascii():
        yield from ((word, False) for word in folded.translate(_ASCII_SEPARATORS).split())
        return
    for found in _TOKENS.finditer(folded):
        yield found[0], found.lastgroup == "spaceless"


def _fold(text: str) -> str:
    """Returns a text in lower case, without accents and invisible characters, and with plain letters."""
    if text.isascii():
        return text.lower().translate(_JOINED)
    text = _INVISIBLE.sub("", text).translate(_JOINED)
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    text = "".join(filterfalse(unicodedata.combining, text)).translate(_FOLDED)
    return _OTHER_LATIN.sub(lambda letter: anyascii(letter[0]).lower(), unicodedata.normalize("NFC", text))
