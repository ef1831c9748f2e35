"""Folds text: names, identifiers and e-mail addresses that people read as the same become equal.

The databases do not fold text, because SQLite folds only ASCII, and PostgreSQL by the rules of its system.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import regex
from anyascii import anyascii

from caseload_server.domain import limits

Token = tuple[str, str | None]
"""A part of a name, and its kind: WORD, SPACELESS or SYMBOL."""
WORD: Final = "word"
"""Letters and digits, perhaps with apostrophes and hyphens between them."""
SPACELESS: Final = "spaceless"
"""Letters of a script that is written without spaces: Chinese, Japanese or Korean."""
SYMBOL: Final = "symbol"
"""An emoji or a similar symbol."""

_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}]+", regex.V1)
_APOSTROPHES: Final = (
    "'`\u00b4\u02b9\u02ba\u02bb\u02bc\u02bd\u02be\u02bf\u02c0\u02c1\u02c8\u02ca\u02cb\u02ce\u02cf\u02d2\u02d3\u02ee\u02f4\u0315\u0374"
    "\u0384\u0559\u055a\u05f3\u05f4\u07f4\u07f5\u1fbd\u1fbf\u1fcd\u1fce\u1fdd\u1fde\u1fef\u1ffd\u1ffe\u2018\u2019\u201a\u201b"
    "\u2032\u2035\u275b\u275c\u275f\ua78b\ua78c\uff07\uff40"
)
"""Apostrophes, and what is used as one: accents without a letter, primes, glottal stops, geresh and gershayim."""
_NON_JOINER: Final = "\u200c"
"""The zero-width non-joiner. It separates parts of a word as an apostrophe does."""
_DOUBLE_QUOTES: Final = "\u201c\u201d\u201e\u201f\u2033\u2036\uff02"
_GERSHAYIM = regex.compile(r'(?<=\p{Hebrew}\p{M}*)"(?=\p{Hebrew})')
"""A quotation mark within a Hebrew word. Most keyboards have no gershayim."""
_HYPHENS: Final = "\u02d7\u2043\u2212"
"""Hyphens that Unicode does not count as dashes."""
_ACCENT_CLASSES: Final = {1, 7, *range(10, 37), *range(200, 256)}
"""The combining classes of marks that are left out: accents, nuktas, vowel points of Hebrew and Arabic. The other
marks are vowel signs, tone marks and viramas, which names differ in. https://www.unicode.org/reports/tr44/"""
_HIRAGANA: Final = (*range(0x3041, 0x3095), 0x309D)
"""The letters of hiragana and their repetition mark. Katakana have the same order, 0x60 behind them."""
_SMALL_KANA: Final = "ぁぃぅぇぉっゃゅょゎ"
"""Each stands before its large letter. Old systems write the large ones instead."""
_OLD_KANJI: Final = "髙﨑𠮷濵濱邊邉齊齋斉嶋嶌澤廣櫻冨舘栁桒瀧龍國眞惠德瀨榮條藏淵槇關鐵寶實萬與壽學"
_NEW_KANJI: Final = "高崎吉浜浜辺辺斎斎斎島島沢広桜富館柳桑滝竜国真恵徳瀬栄条蔵渕槙関鉄宝実万与寿学"
"""Kanji of Japanese names in other forms, as in family registers, and in the form that most people type."""
_SAME_LETTERS: Final = {
    **{chr(kana + katakana): chr(kana + (chr(kana) in _SMALL_KANA)) for kana in _HIRAGANA for katakana in (0, 0x60)},
    **dict.fromkeys("\u3095\u30f5", "\u304b"),  # small ka and ke, which stand in surnames
    **dict.fromkeys("\u3096\u30f6", "\u3051"),
    **dict.fromkeys("\u0620\u0649\u06cc\u06cd\u06ce\u06d0\u06d2\u063d\u063e\u063f", "\u064a"),  # forms of yeh
    **dict.fromkeys("\u06a9\u06aa", "\u0643"),  # of kaf
    **dict.fromkeys("\u0671\u0672\u0673", "\u0627"),  # of alef
    **dict.fromkeys("\u0629\u06d5\u06c1\u06be\u06c3", "\u0647"),  # teh marbuta, and forms of heh
    "\u06ba": "\u0646",  # noon without its dot, at the end of Urdu words
    "\u0674": "",  # the high hamza of a Kazakh letter
    "\u0640": "",  # tatweel, which stretches a word
    "\u0491": "\u0433",  # Cyrillic ghe with upturn
    "\u30fc": "",  # the long vowel mark, which is also written as a hyphen or left out
    **{chr(final): chr(final + 1) for final in (0x5DA, 0x5DD, 0x5DF, 0x5E3, 0x5E5)},  # final letters of Hebrew
    "\u05f0": "\u05d5\u05d5",  # double letters of Yiddish
    "\u05f1": "\u05d5\u05d9",
    "\u05f2": "\u05d9\u05d9",
    "\u09ce": "\u09a4\u09cd",  # Bengali khanda ta, and Malayalam chillus, also written with a virama and a joiner
    "\u0d7a": "\u0d23\u0d4d",
    "\u0d7b": "\u0d28\u0d4d",
    "\u0d7c": "\u0d30\u0d4d",
    "\u0d7d": "\u0d32\u0d4d",
    "\u0d7e": "\u0d33\u0d4d",
    "\u0d7f": "\u0d15\u0d4d",
    **dict(zip(_OLD_KANJI, _NEW_KANJI, strict=True)),
}
_MAX_KEPT: Final = 30_000
"""Characters that a table keeps."""
_MAX_DECOMPOSED: Final = 800
"""Characters of a decomposed name that are read: four for each of 200. Accented letters decompose to at most four, but
some ligatures to 18."""
_LATIN = regex.compile(r"\p{Script=Latin}")
_SPACELESS_SCRIPTS: Final = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Script=Bopomofo}〆"
)
_SPACELESS_LETTER: Final = rf"[[{_SPACELESS_SCRIPTS}]&&[\p{{L}}\p{{N}}]]"
_LETTER: Final = rf"[[\p{{L}}\p{{N}}\p{{Co}}\p{{Cn}}]--[\p{{Noncharacter_Code_Point}}{_SPACELESS_SCRIPTS}]]"
"""A letter or digit of another script. Python may not know those of the newest version of Unicode yet."""
_TOKENS = regex.compile(
    rf"(?P<spaceless>(?:{_SPACELESS_LETTER}\p{{M}}*)+)|(?P<word>{_LETTER}(?:{_LETTER}|[\p{{M}}'-])*)"
    r"|(?P<symbol>[\p{So}--\u2800])",
    regex.V1,
)
_REPETITION_MARKS: Final = frozenset("\u3005\u303b\u309d")
"""Marks that stand for the letter before them, of kanji or kana."""
_REPETITION = regex.compile(rf"(?<=({_SPACELESS_LETTER})\p{{M}}*)[{''.join(_REPETITION_MARKS)}]", regex.V1)
_VOICED_KANA = regex.compile("[\u3041-\u3096][\u3099\u309a]")
_IOTA_SUBSCRIPT: Final = "\u0345"
"""An accent of Greek letters, which would become a letter in lower case."""
_CHARACTERS = regex.compile(r"[\u1100-\u115f](?=[\u1100-\u115f])|\X")
"""A character as a reader sees it. A consonant that stands alone is no part of the Hangul syllable behind it."""
_ASCII_SEPARATORS: Final = {ord(char): " " for char in map(chr, range(128)) if not char.isalnum() and char not in "'-"}
_ASCII: Final = _ASCII_SEPARATORS | {ord("`"): "'"}


class _Table(dict[int, str]):
    """What replaces a character, as str.translate needs it."""

    def __init__(self, replace: Callable[[str], str], replaced: Mapping[int, str]) -> None:
        """Args: replace, for all characters except those in `replaced`."""
        super().__init__(replaced)
        self._replace = replace

    def __missing__(self, code: int) -> str:
        replacement = self._replace(chr(code))
        if len(self) < _MAX_KEPT:  # a caller can send every character there is
            self[code] = replacement
        return replacement


def _without_invisible(char: str) -> str:
    return "" if _INVISIBLE.match(char) else char


def _plain_all(char: str) -> str:
    """Returns the plain form of a decomposed character in lower case. An accent becomes nothing."""
    return "".join(map(_plain, unicodedata.normalize("NFKD", char)))


def _plain(char: str) -> str:
    category = unicodedata.category(char)
    if unicodedata.combining(char) in _ACCENT_CLASSES:
        return ""
    if char in _APOSTROPHES:
        return "'"
    if category == "Pd" or char in _HYPHENS:
        return "-"
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if not char.isascii() and _LATIN.match(char):
        return anyascii(char).lower()
    return _SAME_LETTERS.get(char, char)


_CLEANED: Final = _Table(
    _without_invisible,
    {
        **dict.fromkeys(map(ord, _APOSTROPHES + _NON_JOINER), "'"),  # some of them decompose to a space
        **dict.fromkeys(map(ord, _DOUBLE_QUOTES), '"'),
        0x309B: "\u3099",  # the voiced sound marks of kana, which decompose to a space and a mark
        0x309C: "\u309a",
    },
)
"""What replaces a character before it is decomposed."""
_PLAIN: Final = _Table(_plain_all, {})


def tokens(name: str) -> Iterable[Token]:
    """Returns the parts of a name, in order: in lower case, without accents and invisible characters.

    All apostrophes become "'", all hyphens "-", letters such as æ plain ones. Everything else separates.
    """
    if name.isascii():
        return [(word, WORD) for word in name.lower().translate(_ASCII).split()]
    folded = unicodedata.normalize("NFKD", name.translate(_CLEANED))[:_MAX_DECOMPOSED]
    if '"' in folded:
        folded = _GERSHAYIM.sub("'", folded)
    plain = folded.replace(_IOTA_SUBSCRIPT, "").casefold().translate(_PLAIN)
    return [(found[0], found.lastgroup) for found in _TOKENS.finditer(plain)]


def characters(token: str) -> list[str]:
    """Returns the characters as a reader sees them: a Hangul syllable with all its letters, kana with its marks."""
    return _CHARACTERS.findall(token)


def spell_out(token: str) -> str:
    """Returns a token with letters instead of the marks that repeat them. A mark at its beginning stays.

    Kana become one character with their voiced sound mark, because ka is no beginning of ga.
    """
    repeated = token if _REPETITION_MARKS.isdisjoint(token) else _REPETITION.sub(r"\1", token)
    return _VOICED_KANA.sub(lambda found: unicodedata.normalize("NFC", found[0]), repeated)


def begins_spaceless(text: str) -> bool:
    """Returns whether the first letter of a name is Chinese, Japanese or Korean."""
    return not text.isascii() and any(kind == SPACELESS for _, kind in list(tokens(text))[:1])


def email_key(email: str) -> str:
    """Returns the key of an e-mail address: as of an identifier, and without case."""
    return email.lower() if email.isascii() else _bounded(_visible(email).casefold(), email)


def identifier_key(value: str) -> str:
    """Returns the key of the value of an identifier: in NFKC, without invisible characters, trimmed."""
    return value.strip() if value.isascii() else _bounded(_visible(value), value)


def _visible(text: str) -> str:
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).strip()


def _bounded(key: str, value: str) -> str:
    """Returns the key of a value. A value whose key is empty, or much longer than the value, is its own key."""
    return key if 0 < len(key) <= limits.MAX_KEY_LENGTH else value
