"""The rules of single fields: each turns a value as sent into a value as stored, or notes what is wrong with it.

Descriptions never repeat the value. Lengths are in characters, after Unicode normalisation (NFC) and trimming.
"""

import datetime
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from caseload_server.domain import limits
from caseload_server.domain.errors import InvalidField, Violation

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PHONE = re.compile(r"\+[1-9][0-9]{1,14}")
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[!-~]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls of every kind; the ones of writing direction could make one name read as another."""
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Hangul fillers and the empty Braille cell: letters and symbols to Unicode, with nothing to see."""
_LONG = 100_000
"""Longer texts than this are refused before any work is spent on them."""
NPI_SYSTEM = "http://hl7.org/fhir/sid/us-npi"

MICROS = 1_000_000
MINUTE_US = 60 * MICROS
DAY_US = 24 * 3600 * MICROS


class Problems(list[Violation]):
    """What is wrong with a request so far."""

    def add(self, path: str, description: str) -> None:
        """Notes one violation: where, and what is asked of the field there."""
        self.append(Violation(path, description))

    def check(self) -> None:
        """Raises InvalidField where anything was noted."""
        if self:
            raise InvalidField(*self)


Rule = Callable[[Any, str, Problems], Any]


def record_id(value: str, path: str, problems: Problems) -> str:
    """An id of a therapist or patient."""
    if not value:
        problems.add(path, "is required")
    elif not ID.fullmatch(value):
        problems.add(path, "must be 1 to 63 of a-z, 0-9 and -, and not begin with -")
    return value


def optional_id(value: str, path: str, problems: Problems) -> str:
    """An id to use, or none."""
    return record_id(value, path, problems) if value else ""


def request_id(value: str, path: str, problems: Problems) -> str:
    """A UUID in its usual form, or none."""
    if value and not UUID.fullmatch(value):
        problems.add(path, "must be a UUID")
    return value.lower()


def text(least: int, most: int) -> Rule:
    """Text of least to most characters; with least above 0 something of it must be visible."""

    def rule(value: str, path: str, problems: Problems) -> str:
        if len(value) > _LONG:
            problems.add(path, f"must have at most {most} characters")
            return ""
        if _CONTROL.search(value):
            problems.add(path, "must not contain control characters")
        value = unicodedata.normalize("NFC", value).strip()
        if len(value) > most:
            problems.add(path, f"must have at most {most} characters")
        elif least and not any(map(_visible, value)):
            problems.add(path, "is required" if not value else "must not be blank")
        elif len(value) < least:
            problems.add(path, f"must have at least {least} characters")
        return value

    return rule


def _visible(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS" and character not in _BLANK_LETTERS


display_name = text(1, 200)


def _pattern(pattern: re.Pattern[str], least: int, most: int, description: str) -> Rule:
    rule = text(least, most)

    def matching(value: str, path: str, problems: Problems) -> str:
        before = len(problems)
        normal: str = rule(value, path, problems)
        if normal and len(problems) == before and not pattern.fullmatch(normal):
            problems.add(path, description)
        return normal

    return matching


email = _pattern(_EMAIL, 0, 254, "must be an e-mail address: one @, something on both sides, no white space")
phone_number = _pattern(_PHONE, 0, 16, "must be an E.164 number: + and 2 to 15 digits")
code = _pattern(_CODE, 0, 64, "must be in kebab-case: a-z and 0-9, with - between words")
required_code = _pattern(_CODE, 1, 64, "must be in kebab-case: a-z and 0-9, with - between words")
_system = _pattern(_URI, 1, 200, "must be a URI")
_value = text(1, 200)


class _IdentifierMessage(Protocol):
    system: str
    value: str


def identifier(message: _IdentifierMessage, path: str, problems: Problems) -> tuple[str, str]:
    """(system, value); an NPI needs its check digit (the Luhn formula over 80840 and the ten digits)."""
    before = len(problems)
    system = _system(message.system, f"{path}.system", problems)
    value = _value(message.value, f"{path}.value", problems)
    if system == NPI_SYSTEM and len(problems) == before and not _is_npi(value):
        problems.add(f"{path}.value", "must be an NPI: ten digits, the last of them the check digit")
    return system, value


def _is_npi(value: str) -> bool:
    if not re.fullmatch(r"[0-9]{10}", value):
        return False
    digits = [int(digit) for digit in reversed("80840" + value)]
    doubled = (digit * 2 for digit in digits[1::2])
    return (sum(digits[::2]) + sum(digit // 10 + digit % 10 for digit in doubled)) % 10 == 0


def _list(rule: Rule, most: int) -> Rule:
    """At most so many values, none twice, as JSON."""

    def each(values: Collection[Any], path: str, problems: Problems) -> str:
        if len(values) > most:
            problems.add(path, f"must have at most {most} entries")
            return "[]"
        before = len(problems)
        normal = [rule(value, f"{path}[{index}]", problems) for index, value in enumerate(values)]
        if len(problems) == before:
            for index, value in enumerate(normal):
                if value in normal[:index]:
                    problems.add(f"{path}[{index}]", "must not repeat an earlier entry")
        return to_json(normal)

    return each


identifiers = _list(identifier, limits.MAX_IDENTIFIERS)
specialties = _list(required_code, limits.MAX_SPECIALTIES)
_annotation_key = text(1, 63)
_annotation_value = text(0, 1000)


def annotations(values: Mapping[str, str], path: str, problems: Problems) -> str:
    """Principal-owned entries, as JSON. Entries are named by their place in the order of their keys."""
    if len(values) > limits.MAX_ANNOTATIONS:
        problems.add(path, f"must have at most {limits.MAX_ANNOTATIONS} entries")
        return "{}"
    normal: dict[str, str] = {}
    for index, key in enumerate(sorted(values)):
        entry = f"{path}[{index}]"
        name = _annotation_key(key, f"{entry}.key", problems)
        if name in normal:
            problems.add(f"{entry}.key", "must not repeat an earlier key")
        normal[name] = _annotation_value(values[key], f"{entry}.value", problems)
    return to_json(normal)


def to_json(value: object) -> str:
    """JSON as it is stored: short, and with text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def bound(value: int, path: str, problems: Problems) -> int:
    """A count that must not be negative."""
    if value < 0:
        problems.add(path, "must not be negative")
    return value


def page_size(value: int) -> int:
    """The records that a page may hold: the default for 0, at most the largest size. Raises InvalidField."""
    if value < 0:
        raise InvalidField(Violation("page_size", "must not be negative"))
    return min(value or limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)


class _DateMessage(Protocol):
    year: int
    month: int
    day: int


def birth_date(now_us: int) -> Rule:
    """YYYY-MM-DD; a whole date, not after today anywhere on Earth (UTC+14)."""

    def rule(message: _DateMessage, path: str, problems: Problems) -> str:
        try:
            date = datetime.date(message.year, message.month, message.day)
        except (ValueError, OverflowError):
            problems.add(path, "must be a date with year, month and day")
            return ""
        if date > datetime.datetime.fromtimestamp(now_us // MICROS + 14 * 3600, datetime.UTC).date():
            problems.add(path, "must not lie in the future")
        return date.isoformat()

    return rule


def enum(known: Iterable[int]) -> Rule:
    """One of the contract's values, and not UNSPECIFIED."""
    values = frozenset(known) - {0}

    def rule(value: int, path: str, problems: Problems) -> int:
        if value not in values:
            problems.add(path, "must be a known value, not UNSPECIFIED" if value == 0 else "must be a known value")
        return value

    return rule


def enums(rule: Rule) -> Rule:
    """A set of the contract's values."""

    def each(values: Collection[int], path: str, problems: Problems) -> tuple[int, ...]:
        if len(values) > limits.MAX_FILTER_VALUES:
            problems.add(path, f"must have at most {limits.MAX_FILTER_VALUES} entries")
            return ()
        return tuple(sorted({rule(value, f"{path}[{index}]", problems) for index, value in enumerate(values)}))

    return each


def moment(message: Message, path: str, problems: Problems, latest_us: int, beyond: str) -> int | None:
    """A Timestamp of the message in microseconds, cut, or None where it is absent; not after latest_us.

    The path ends in the field's name in the message.
    """
    field = path.rpartition(".")[2]
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    if not (-62_135_596_800 <= timestamp.seconds <= 253_402_300_799 and 0 <= timestamp.nanos < 1_000_000_000):
        problems.add(path, "must be a time between the years 1 and 9999")
        return None
    at_us = timestamp.seconds * MICROS + timestamp.nanos // 1000
    if at_us > latest_us:
        problems.add(path, beyond)
    return at_us
