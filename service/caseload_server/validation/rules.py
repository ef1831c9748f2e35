"""The rules of single fields. Each rule converts a value as sent to the value as stored, or adds a violation.

Descriptions never repeat the value. Lengths are in characters, after Unicode normalization (NFC) and trimming.
"""

import datetime
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from caseload_server.domain import limits
from caseload_server.domain.errors import InvalidField, Violation
from caseload_server.domain.id_formats import (
    ID_PATTERN,
    ON_BEHALF_OF_FORMAT,
    ON_BEHALF_OF_PATTERN,
    UUID_PATTERN,
    are_ids,
)
from caseload_server.domain.text_folding import identifier_key
from caseload_server.domain.value_formats import CODE_PATTERN, EMAIL_PATTERN, PHONE_PATTERN

_URI_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[!-~]+")
_CONTROL_PATTERN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters of every kind. Those that set the writing direction could make one name look like another."""
_INVISIBLE_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Hangul fillers and the empty Braille cell: Unicode counts them as letters and symbols, but they show nothing."""
_MAX_COMPOSED_CHARACTERS = 4
"""Normalization (NFC) composes at most this many characters into one."""
_MAX_MARKS_IN_A_ROW = 30
"""Combining marks in a row, as in https://unicode.org/reports/tr15/#Stream_Safe_Text_Format. To normalize n of them can
take n * n steps."""
_POSSIBLE_MARKS = re.compile(rf"[^\w\x00-\x7f]{{{_MAX_MARKS_IN_A_ROW + 1},}}")
"""Letters, digits and ASCII are no marks. This is faster than to look up the category of each character."""
NPI_SYSTEM = "http://hl7.org/fhir/sid/us-npi"
"""The identifier system of the US National Provider Identifier, whose check digit is verified."""

MICROS_PER_SECOND = 1_000_000
_YEAR_LENGTH, _MONTH_LENGTH = len("YYYY"), len("YYYY-MM")


class ValidationErrors(list[Violation]):
    """The violations found in a request so far."""

    def add(self, path: str, description: str) -> None:
        """Adds a violation. Args: path, of the field in the request; description, what the field must be."""
        self.append(Violation(path, description))

    def raise_if_any(self) -> None:
        """Raises InvalidField when there is at least one violation."""
        if self:
            raise InvalidField(*self)


Rule = Callable[[Any, str, ValidationErrors], Any]
"""Takes a value, the path of its field and the violations so far. Returns the value to store."""


def record_id(value: str, path: str, violations: ValidationErrors) -> str:
    """The id of a therapist, a patient or an assignment."""
    if not value:
        violations.add(path, "is required")
    elif not ID_PATTERN.fullmatch(value):
        violations.add(path, "must be 1 to 63 of a-z, 0-9 and -, and not begin with -")
    return value


def record_ids(values: Sequence[str], path: str, violations: ValidationErrors) -> None:
    """A list of ids."""
    if not are_ids(values):  # to format a path for each id takes longer than all the rest
        for index, value in enumerate(values):
            record_id(value, f"{path}[{index}]", violations)


def optional_id(value: str, path: str, violations: ValidationErrors) -> str:
    """An id, or empty."""
    return record_id(value, path, violations) if value else ""


def on_behalf_of(value: str, path: str, violations: ValidationErrors) -> str:
    """The id of an end user, or empty."""
    if value and not ON_BEHALF_OF_PATTERN.fullmatch(value):
        violations.add(path, ON_BEHALF_OF_FORMAT)
    return value


def request_id(value: str, path: str, violations: ValidationErrors) -> str:
    """A UUID in its usual form with hyphens, or empty. Returns it in lower case."""
    if value and not UUID_PATTERN.fullmatch(value):
        violations.add(path, "must be a UUID")
    return value.lower()


def text(min_length: int, max_length: int) -> Rule:
    """Returns the rule for a text. When min_length is above 0, at least one character must be visible."""

    def rule(sent: str, path: str, violations: ValidationErrors) -> str:
        if _CONTROL_PATTERN.search(sent):
            violations.add(path, "must not contain control characters")
        value = sent.strip()
        if len(value) > max_length * _MAX_COMPOSED_CHARACTERS:
            violations.add(path, f"must have at most {max_length} characters")
            return ""
        if not value.isascii() and _has_too_many_marks(value):
            violations.add(path, f"must not have more than {_MAX_MARKS_IN_A_ROW} combining marks in a row")
            return ""
        value = unicodedata.normalize("NFC", value).strip()
        if len(value) > max_length:
            violations.add(path, f"must have at most {max_length} characters")
        elif min_length and not any(map(_is_visible, value)):
            violations.add(path, "must not be blank" if sent else "is required")
        elif len(value) < min_length:
            violations.add(path, f"must have at least {min_length} characters")
        return value

    return rule


def _has_too_many_marks(value: str) -> bool:
    for run in _POSSIBLE_MARKS.findall(value):
        marks = "".join("M" if unicodedata.category(character)[0] == "M" else " " for character in run)
        if "M" * (_MAX_MARKS_IN_A_ROW + 1) in marks:
            return True
    return False


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS" and character not in _INVISIBLE_LETTERS


display_name = text(1, 200)


def _matching_text(pattern: re.Pattern[str], min_length: int, max_length: int, description: str) -> Rule:
    length_rule = text(min_length, max_length)

    def rule(value: str, path: str, violations: ValidationErrors) -> str:
        before = len(violations)
        normalized: str = length_rule(value, path, violations)
        if normalized and len(violations) == before and not pattern.fullmatch(normalized):
            violations.add(path, description)
        return normalized

    return rule


_KEBAB_CASE = "must be in kebab-case: a-z and 0-9, with - between words"

_EMAIL = "must be an e-mail address: one @, something on both sides, no white space"
_PHONE_NUMBER = "must be an E.164 number: + and 2 to 15 digits"

email = _matching_text(EMAIL_PATTERN, 0, 254, _EMAIL)
required_email = _matching_text(EMAIL_PATTERN, 1, 254, _EMAIL)
phone_number = _matching_text(PHONE_PATTERN, 0, 16, _PHONE_NUMBER)
required_phone_number = _matching_text(PHONE_PATTERN, 1, 16, _PHONE_NUMBER)
code = _matching_text(CODE_PATTERN, 0, 64, _KEBAB_CASE)
required_code = _matching_text(CODE_PATTERN, 1, 64, _KEBAB_CASE)
_identifier_system = _matching_text(_URI_PATTERN, 1, 200, "must be a URI")
identifier_value = text(1, 200)


class _IdentifierMessage(Protocol):
    system: str
    value: str


def identifier(message: _IdentifierMessage, path: str, violations: ValidationErrors) -> tuple[str, str]:
    """An identifier. Returns (system, value). The check digit of an NPI must be right."""
    before = len(violations)
    system = _identifier_system(message.system, f"{path}.system", violations)
    value = identifier_value(message.value, f"{path}.value", violations)
    if system == NPI_SYSTEM and len(violations) == before and not _is_npi(value):
        violations.add(f"{path}.value", "must be an NPI: ten digits, the last of them the check digit")
    return system, value


def _is_npi(value: str) -> bool:
    """Verifies the check digit with the Luhn formula over 80840 and the ten digits."""
    if not re.fullmatch(r"[0-9]{10}", value):
        return False
    digits = [int(digit) for digit in reversed("80840" + value)]
    doubled = (digit * 2 for digit in digits[1::2])
    return (sum(digits[::2]) + sum(digit // 10 + digit % 10 for digit in doubled)) % 10 == 0


def _unique_list(entry_rule: Rule, max_entries: int, key: Callable[[Any], Any] = lambda entry: entry) -> Rule:
    """Returns the rule for a list without duplicates, which is stored as JSON. Args: key, equal for duplicates."""

    def rule(values: Collection[Any], path: str, violations: ValidationErrors) -> str:
        if len(values) > max_entries:
            violations.add(path, f"must have at most {max_entries} entries")
            return "[]"
        before = len(violations)
        entries = [entry_rule(value, f"{path}[{index}]", violations) for index, value in enumerate(values)]
        if len(violations) == before:
            keys = list(map(key, entries))
            for index, entry_key in enumerate(keys):
                if entry_key in keys[:index]:
                    violations.add(f"{path}[{index}]", "must not repeat an earlier entry")
        return to_json(entries)

    return rule


identifiers = _unique_list(identifier, limits.MAX_IDENTIFIERS, lambda pair: (pair[0], identifier_key(pair[1])))
aliases = _unique_list(display_name, limits.MAX_ALIASES)
specialties = _unique_list(required_code, limits.MAX_SPECIALTIES)
_annotation_key = text(1, 63)
_annotation_value = text(0, 1000)


def annotations(values: Mapping[str, str], path: str, violations: ValidationErrors) -> str:
    """The annotations of a record, stored as JSON. Paths give the index of an entry in the order of the keys."""
    if len(values) > limits.MAX_ANNOTATIONS:
        violations.add(path, f"must have at most {limits.MAX_ANNOTATIONS} entries")
        return "{}"
    entries: dict[str, str] = {}
    for index, key in enumerate(sorted(values)):
        entry_path = f"{path}[{index}]"
        name = _annotation_key(key, f"{entry_path}.key", violations)
        if name in entries:
            violations.add(f"{entry_path}.key", "must not repeat an earlier key")
        entries[name] = _annotation_value(values[key], f"{entry_path}.value", violations)
    return to_json(entries)


def to_json(value: object) -> str:
    """Returns JSON as it is stored: without spaces, and without escapes for non-ASCII text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def non_negative(value: int, path: str, violations: ValidationErrors) -> int:
    """A number of at least 0."""
    if value < 0:
        violations.add(path, "must not be negative")
    return value


def page_size(value: int) -> int:
    """Returns the number of records a page may hold: the default for 0, and the maximum for more.

    Raises InvalidField when it is negative.
    """
    if value < 0:
        raise InvalidField(Violation("page_size", "must not be negative"))
    return min(value or limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)


class _DateMessage(Protocol):
    year: int
    month: int
    day: int


def birth_date(now_us: int) -> Rule:
    """Returns the rule for a date, or a year with or without a month. Stored as YYYY, YYYY-MM or YYYY-MM-DD.

    It is not before 1850, and its first day is not after today anywhere on Earth (UTC+14).

    Args: now_us, in microseconds since 1970 (UTC).
    """

    def rule(message: _DateMessage, path: str, violations: ValidationErrors) -> str:
        try:
            first_day = datetime.date(message.year, message.month or 1, message.day or 1)
        except (ValueError, OverflowError):
            violations.add(path, "must be a date with a year; month and day are optional")
            return ""
        if message.day and not message.month:
            violations.add(path, "must not have a day without a month")
        if message.year < limits.EARLIEST_BIRTH_YEAR:
            violations.add(path, f"must not lie before {limits.EARLIEST_BIRTH_YEAR}")
        latest = datetime.datetime.fromtimestamp(now_us // MICROS_PER_SECOND + 14 * 3600, datetime.UTC).date()
        if first_day > latest:
            violations.add(path, "must not lie in the future")
        length = _YEAR_LENGTH if not message.month else _MONTH_LENGTH if not message.day else None
        return first_day.isoformat()[:length]

    return rule


def enum(numbers: Iterable[int]) -> Rule:
    """Returns the rule for one of an enumeration's numbers, except UNSPECIFIED."""
    allowed = frozenset(numbers) - {0}

    def rule(value: int, path: str, violations: ValidationErrors) -> int:
        if value not in allowed:
            violations.add(path, "must be a known value, not UNSPECIFIED" if value == 0 else "must be a known value")
        return value

    return rule


def enum_set(enum_rule: Rule) -> Rule:
    """Returns the rule for a set of an enumeration's numbers. It returns them sorted and without duplicates."""

    def rule(values: Collection[int], path: str, violations: ValidationErrors) -> tuple[int, ...]:
        if len(values) > limits.MAX_FILTER_VALUES:
            violations.add(path, f"must have at most {limits.MAX_FILTER_VALUES} entries")
            return ()
        return tuple(sorted({enum_rule(value, f"{path}[{index}]", violations) for index, value in enumerate(values)}))

    return rule


def past_us(message: Message, path: str, violations: ValidationErrors, now_us: int) -> int | None:
    """A Timestamp field that is at most a minute ahead, because clocks differ. Args and result as timestamp_us."""
    at_us = timestamp_us(message, path, violations)
    if at_us is not None and at_us > now_us + limits.CLOCK_TOLERANCE_US:
        violations.add(path, "must lie at most a minute ahead")
    return at_us


def timestamp_us(message: Message, path: str, violations: ValidationErrors) -> int | None:
    """A Timestamp field, truncated to microseconds. Returns microseconds since 1970 (UTC), or None when it is absent.

    Args: path, ends in the name of the field in the message.
    """
    field = path.rpartition(".")[2]
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    if not (-62_135_596_800 <= timestamp.seconds <= 253_402_300_799 and 0 <= timestamp.nanos < 1_000_000_000):
        violations.add(path, "must be a time between the years 1 and 9999")
        return None
    at_us = timestamp.seconds * MICROS_PER_SECOND + timestamp.nanos // 1000
    if at_us < limits.EARLIEST_TIME_US:
        violations.add(path, "must not lie before 1900-01-01T00:00:00Z")
    return at_us


def planned_time_us(message: Message, path: str, violations: ValidationErrors) -> int | None:
    """A Timestamp field, as timestamp_us. Only the store compares it with the present.

    It does so after it has looked for a replay, because the time may have passed since the first call.
    """
    return timestamp_us(message, path, violations)
