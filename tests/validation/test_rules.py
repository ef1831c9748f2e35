"""The rules of single fields on many values. tests/api/test_request_fields.py sends a few over the wire."""

import json
import re
import sys
import unicodedata

import pytest
from caseload.v1 import resources_pb2 as pb
from caseload.v1 import therapist_service_pb2
from caseload_server.validation import rules
from caseload_server.validation.rules import ValidationErrors
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.validation.rule_calls import apply_rule, takes

NPI = "1234567893"
"""The example of a valid NPI from the NPI check digit standard."""
CONTROL = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))]

printable = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=250)


@given(printable)
@example("e\u0301")
@example("\u00a0Ann\u2003")
@example("\u212b")
def test_text_normalization_trims_composes_and_is_idempotent(value: str) -> None:
    stored, wrong = apply_rule(rules.text(0, 250), value)
    assume(not wrong)
    assert stored == stored.strip() == unicodedata.normalize("NFC", stored)
    assert unicodedata.normalize("NFC", value).strip() == stored
    assert apply_rule(rules.text(0, 250), stored) == (stored, [])


@given(printable, st.sampled_from(CONTROL), printable)
@example("Ann", "\n", "")
@example("", "\t", "Ann")
def test_a_control_character_anywhere_in_a_text_is_rejected(before: str, control: str, after: str) -> None:
    for rule in (rules.text(0, 1000), rules.display_name, rules.email, rules.phone_number, rules.code):
        assert not takes(rule, before + control + after)


@pytest.mark.parametrize("control", CONTROL, ids=lambda control: f"U+{ord(control):04X}")
def test_every_control_character_is_rejected(control: str) -> None:
    assert not takes(rules.display_name, f"Ann{control}Lee")


@pytest.mark.parametrize("kept", ["Ann\u200dLee", "O\u2019Neill", "李小龍", "Ann 🌱", "\u05d0\u05b8", "X"])
def test_other_characters_of_names_are_preserved(kept: str) -> None:
    assert apply_rule(rules.display_name, kept) == (kept, [])


@given(st.text(st.sampled_from(" \u00a0\u2003\u3000\u2028\u200b\u200d\u2060\ufeff\u00ad\u0301\ufe0f"), max_size=10))
@example("\u3164")
@example("\uffa0")
@example("\u115f\u1160")
@example("\u2800")
@example("\u034f")
@example("\u180e")
@example("\U000e0041")
def test_a_name_without_visible_characters_is_rejected(blank: str) -> None:
    assert not takes(rules.display_name, blank)
    assert not takes(rules.identifier, pb.Identifier(system="urn:x", value=blank))


@given(st.integers(0, 210), st.sampled_from(["x", "ü", "🌱", "e\u0301"]))
def test_lengths_count_characters_after_composition(count: int, character: str) -> None:
    assert takes(rules.display_name, character * count) == (1 <= count <= 200)
    assert takes(rules.display_name, f"  {character * count}  ") == (1 <= count <= 200)


def test_a_text_of_millions_of_characters_is_rejected_before_normalization() -> None:
    assert apply_rule(rules.display_name, "\u0958" * 1_000_000) == ("", [("path", "must have at most 200 characters")])


@pytest.mark.parametrize(
    ("sent", "problem"), [("", "is required"), (" ", "must not be blank"), ("\u200b", "must not be blank")], ids=ascii
)
def test_a_missing_text_and_a_blank_one_get_different_errors(sent: str, problem: str) -> None:
    assert apply_rule(rules.display_name, sent)[1] == [("path", problem)]


def test_white_space_around_a_text_does_not_count() -> None:
    assert apply_rule(rules.display_name, "\u2003" * 1000 + "Ann" + " " * 1000) == ("Ann", [])


@pytest.mark.parametrize("mark", ["\u0301", "\u0316\u0301", "\u0f73", "\u302e"], ids=ascii)
def test_a_text_has_at_most_30_combining_marks_in_a_row(mark: str) -> None:
    """To normalize n of them in a row can take n * n steps: a megabyte of them would take minutes."""
    marks = mark * 31
    assert takes(rules.display_name, f"a{marks[:30]}b{marks[:30]}")
    too_many = [("path", "must not have more than 30 combining marks in a row")]
    assert apply_rule(rules.display_name, f"a{marks[:31]}b") == ("", too_many)


def test_no_combining_mark_is_missed() -> None:
    """`\\w` and ASCII have no marks, so the faster look at a text finds them all."""
    marks = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M"]
    assert len(marks) > 2000
    assert [ascii(mark) for mark in marks if mark.isascii() or re.match(r"\w", mark)] == []


def test_symbols_in_a_row_are_no_marks() -> None:
    assert takes(rules.display_name, "\U0001f331" * 200)


def test_nothing_is_composed_of_more_characters_than_a_text_may_have_for_each_of_its_own() -> None:
    lengths = {len(unicodedata.normalize("NFD", chr(code))) for code in range(sys.maxunicode + 1)}
    assert max(lengths) == 4
    assert takes(rules.display_name, unicodedata.normalize("NFD", "\u1f82") * 200)


@given(st.text(max_size=70))
@example("a" * 63)
@example("a" * 64)
@example("-a")
@example("a\n")
@example("é")
@example("٣")
def test_ids_match_the_pattern_and_have_1_to_63_characters(value: str) -> None:
    good = re.fullmatch(r"[a-z0-9][a-z0-9-]*", value, re.ASCII) is not None and len(value) <= 63
    assert takes(rules.record_id, value) == good
    assert takes(rules.optional_id, value) == (good or not value)


@given(st.lists(st.from_regex(r"[a-z0-9-]{0,64}\n?[a-z0-9-]{0,2}", fullmatch=True), max_size=4))
@example([])
@example([""])
@example(["a\nb"])
@example(["a\nb", ""])
@example(["a", "\n"])
@example(["a" * 63, "b" * 64, "c"])
def test_a_list_of_ids_has_the_violations_of_each_id_by_its_index(values: list[str]) -> None:
    expected = ValidationErrors()
    for index, value in enumerate(values):
        rules.record_id(value, f"path[{index}]", expected)
    found = ValidationErrors()
    rules.record_ids(values, "path", found)
    assert found == expected


@given(st.uuids().map(str) | st.text(max_size=40))
@example("0190a3c4-0000-7000-8000-00000000000g")
@example("0190a3c4000070008000000000000001")
@example("{0190a3c4-0000-7000-8000-000000000001}")
@example("0190a3c4-0000-7000-8000-000000000001\n")
def test_a_request_id_is_a_uuid_in_canonical_form(value: str) -> None:
    shape = [len(part) for part in value.split("-")]
    good = shape == [8, 4, 4, 4, 12] and set(value) <= set("0123456789abcdefABCDEF-")
    assert takes(rules.request_id, value) == (good or not value)
    assert apply_rule(rules.request_id, value.upper())[0] == apply_rule(rules.request_id, value)[0] or not good


@pytest.mark.parametrize(
    "value", ["", "a@b", "ann.lee+x@example.org", "ünal@bücher.example", f"a@{'b' * 252}", " a@b "]
)
def test_a_valid_email_is_accepted(value: str) -> None:
    assert apply_rule(rules.email, value) == (value.strip(), [])


@pytest.mark.parametrize(
    "value", ["a", "@", "a@", "@b", "a@b@c", "a b@c", "a@b c", "a@b\u2003c", "a@\u00a0", f"a@{'b' * 253}"]
)
def test_an_invalid_email_is_rejected(value: str) -> None:
    assert not takes(rules.email, value)


@given(st.text("+0123456789 ()-٣", max_size=18))
@example("+123456789012345")
@example("+1234567890123456")
@example("+0123")
def test_a_phone_number_is_plus_and_at_most_15_digits(value: str) -> None:
    sent = value.strip()
    good = re.fullmatch(r"\+[1-9][0-9]{1,14}", sent, re.ASCII) is not None
    assert takes(rules.phone_number, value) == (good or not sent)


@given(st.text("abz019-_A ", max_size=8))
@example("hand-therapy")
@example("a" * 64)
@example("a" * 65)
@example("ä")
def test_a_code_is_in_kebab_case(value: str) -> None:
    sent = value.strip()
    words = sent.split("-")
    good = all(word and set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789") for word in words) and len(sent) <= 64
    assert takes(rules.code, value) == (good or not sent)
    assert takes(rules.required_code, value) == good


def test_a_system_is_a_uri() -> None:
    for system in ("urn:oid:2.16.840.1.113883.4.6", "http://hl7.org/fhir/sid/us-ssn", "x:y"):
        assert apply_rule(rules.identifier, pb.Identifier(system=system, value="1")) == ((system, "1"), [])


@pytest.mark.parametrize(
    "system", ["", " ", "\u2003", "mrn", ":x", "urn:", "1a:b", "urn:a b", "urn:\u00fc", "urn:" + "x" * 197]
)
def test_a_system_that_is_not_a_uri_is_rejected(system: str) -> None:
    _, wrong = apply_rule(rules.identifier, pb.Identifier(system=system, value="1"))
    assert {path for path, _ in wrong} == {"path.system"}


@given(st.integers(0, 9_999_999_999).map(lambda number: f"{number:010}"))
@example(NPI)
def test_an_npi_has_exactly_one_valid_check_digit(number: str) -> None:
    right = [digit for digit in "0123456789" if takes_npi(number[:9] + digit)]
    assert len(right) == 1
    assert takes_npi(number) == (number[9] == right[0])


def takes_npi(value: str) -> bool:
    return takes(rules.identifier, pb.Identifier(system=rules.NPI_SYSTEM, value=value))


def test_the_example_npi_is_valid_and_similar_numbers_are_not() -> None:
    assert takes_npi(NPI)
    wrong = [f"{NPI[:n]}{(int(old) + 1) % 10}{NPI[n + 1 :]}" for n, old in enumerate(NPI)]
    wrong += [NPI[:9], NPI + "0", "", "٣" * 10, f"{NPI[0]} {NPI[1:]}", "1243567893"]
    assert [value for value in wrong if takes_npi(value)] == []
    assert takes(rules.identifier, pb.Identifier(system="urn:example:npi", value="1234567890"))


def test_duplicates_are_found_after_normalization_and_named_by_index() -> None:
    twice = [pb.Identifier(system="urn:x", value=value) for value in ("e\u0301", "2", "\u00e9 ")]
    assert apply_rule(rules.identifiers, twice)[1] == [("path[2]", "must not repeat an earlier entry")]
    assert [path for path, _ in apply_rule(rules.specialties, ["hip", "knee", " hip", "hip"])[1]] == [
        "path[2]",
        "path[3]",
    ]


@given(st.lists(st.sampled_from(["hip", "Knee", "", " "]), max_size=25))
def test_an_invalid_list_entry_is_named_by_its_index(values: list[str]) -> None:
    _, wrong = apply_rule(rules.specialties, values)
    bad = {f"path[{n}]" for n, value in enumerate(values) if value != "hip"}
    doubles = len(values) > 20 or (not bad and values.count("hip") > 1)
    assert {path for path, _ in wrong} == bad or doubles
    assert bool(wrong) == bool(bad or doubles)


@given(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=5))
def test_annotations_are_accepted_or_named_by_index_and_never_by_key(entries: dict[str, str]) -> None:
    stored, wrong = apply_rule(rules.annotations, entries)
    for path, description in wrong:
        assert re.fullmatch(r"path\[[0-4]\]\.(key|value)", path)
        assert description.startswith(("must", "is required"))
    if not wrong:
        assert len(json.loads(stored)) == len(entries)


def test_annotation_keys_equal_after_normalization_are_rejected() -> None:
    _, wrong = apply_rule(rules.annotations, {"a": "1", "a ": "2", "b": "3"})
    assert wrong == [("path[1].key", "must not repeat an earlier key")]


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        ({"k" * 63: "v" * 1000}, None),
        ({"k" * 64: "v"}, "path[0].key"),
        ({"": "v"}, "path[0].key"),
        ({"a": "", " ": "v"}, "path[0].key"),
        ({"a": "", "b": "v" * 1001}, "path[1].value"),
        ({"a": "\x00"}, "path[0].value"),
        ({str(n): "" for n in range(32)}, None),
        ({str(n): "" for n in range(33)}, "path"),
    ],
)
def test_annotations_have_limits(entries: dict[str, str], path: str | None) -> None:
    assert [place for place, _ in apply_rule(rules.annotations, entries)[1]] == ([path] if path else [])


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
@example(-62_135_596_800, 0)
@example(-62_135_596_801, 999_999_999)
@example(-2_208_988_800, 0)
@example(-2_208_988_801, 999_999_999)
@example(253_402_300_799, 999_999_999)
@example(253_402_300_800, 0)
@example(0, 1_000_000_000)
@example(0, -1)
@example(-1, 999_999_999)
def test_a_time_is_truncated_to_microseconds_and_lies_in_the_years_1900_to_9999(seconds: int, nanos: int) -> None:
    request = therapist_service_pb2.AssignPatientRequest(start_time=Timestamp(seconds=seconds, nanos=nanos))
    violations = ValidationErrors()
    at_us = rules.timestamp_us(request, "start_time", violations)
    if -2_208_988_800 <= seconds <= 253_402_300_799 and 0 <= nanos <= 999_999_999:
        assert (at_us, violations) == ((seconds * 10**9 + nanos) // 1000, [])
    else:
        assert [violation.field for violation in violations] == ["start_time"]
