"""The page tokens of lists that are not ordered by id. They hold a sort key, which may be a name: encrypted."""

import base64
from typing import Any

import pytest
from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import therapist_service_pb2 as therapist_pb
from caseload_server.api.page_tokens import PageTokens
from caseload_server.domain import errors, limits
from caseload_server.domain.requests import PageRequest
from caseload_server.validation.request_sizes import max_request_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.test_page_tokens import ALPHABET

TOKENS = PageTokens(b"secret" * 4)
NAME = "canary anders"
BY_NAME = patient_pb.ListPatientsRequest(order_by="display_name")
BY_ID = patient_pb.ListPatientsRequest()


def sent(request: Any, token: str) -> Any:
    """The request of the page that a token leads to."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.page_token = token
    return copy


@settings(max_examples=30)
@given(st.text("abc-19", min_size=1, max_size=63), st.text(max_size=300) | st.integers(0, 2**63 - 1))
def test_a_token_leads_to_its_position_in_the_list(after: str, key: str | int) -> None:
    token = TOKENS.issue(BY_NAME, after, key)
    assert TOKENS.parse(sent(BY_NAME, token)) == PageRequest(50, after, key)


def test_the_longest_token_fits_into_a_request() -> None:
    """Into the part of the largest request that is for one text."""
    longest = TOKENS.issue(BY_NAME, "p" * 63, "\U0001f468" * limits.MAX_KEY_LENGTH)
    every: Any = {"roles": [2] * 100, "states": [1] * 100}
    with_token = patient_pb.ListPatientTherapistsRequest(page_token=longest, **every)
    assert with_token.ByteSize() < max_request_bytes(with_token.DESCRIPTOR) - 4096
    assert len(longest) < 254 * 4 * 3


def test_there_is_no_token_after_the_last_page() -> None:
    assert TOKENS.issue(BY_NAME, "", "") == ""


def test_nothing_of_a_name_is_readable_in_a_token() -> None:
    """No six characters of it: fewer appear among encrypted bytes by chance."""
    found = base64.urlsafe_b64decode(TOKENS.issue(BY_NAME, "patient-1", NAME) + "===")
    assert not any(text[n : n + 6].encode() in found for text in (NAME, "patient-1") for n in range(len(text) - 5))


def test_a_token_shows_neither_that_two_names_are_equal_nor_how_long_they_are() -> None:
    first, second, longer = (TOKENS.issue(BY_NAME, "p1", name) for name in (NAME, NAME, NAME * 3))
    assert first[32:] != second[32:]
    assert len(first) == len(longer)


@pytest.mark.parametrize("key", [NAME, 0])
def test_a_damaged_token_is_invalid(key: str | int) -> None:
    token = TOKENS.issue(BY_NAME, "p1", key)
    damaged = [f"{token[:n]}{ALPHABET[ALPHABET.index(old) ^ 32]}{token[n + 1 :]}" for n, old in enumerate(token)]
    damaged += [token[:n] for n in range(1, len(token))]
    damaged += [token + "AAAA", token * 2]
    for text in damaged:
        with pytest.raises(errors.PageTokenInvalid):
            TOKENS.parse(sent(BY_NAME, text))


def test_a_token_of_another_store_is_invalid() -> None:
    with pytest.raises(errors.PageTokenInvalid):
        TOKENS.parse(sent(BY_NAME, PageTokens(b"another" * 4).issue(BY_NAME, "p1", NAME)))


@pytest.mark.parametrize(
    "other",
    [
        BY_ID,
        patient_pb.ListPatientsRequest(order_by="display_name desc"),
        patient_pb.ListPatientsRequest(order_by="display_name", include_total_size=True),
        patient_pb.ListPatientsRequest(order_by="display_name", filter=patient_pb.PatientFilter(email="a@b")),
        therapist_pb.ListTherapistsRequest(order_by="display_name"),
    ],
    ids=str,
)
def test_a_token_is_bound_to_its_request(other: Any) -> None:
    for request, following in ((BY_NAME, other), (other, BY_NAME)):
        for key in (NAME, ""):
            with pytest.raises(errors.PageTokenMismatch):
                TOKENS.parse(sent(following, TOKENS.issue(request, "p1", key)))


def test_the_key_and_the_hash_of_a_token_cannot_be_combined_with_another_one() -> None:
    """Otherwise a caller could move a position to a request that lists other records."""
    other = patient_pb.ListPatientsRequest(order_by="display_name", show_deleted=True)
    one, two = (base64.urlsafe_b64decode(TOKENS.issue(of, "p1", NAME) + "===") for of in (BY_NAME, other))
    mixed = one[:16] + two[16:24] + one[24:]
    with pytest.raises(errors.PageTokenInvalid):
        TOKENS.parse(sent(other, base64.urlsafe_b64encode(mixed).decode().rstrip("=")))


def test_a_token_of_a_list_by_id_is_that_of_the_previous_version() -> None:
    """That version issued this token, so lists that began before an upgrade go on after it."""
    request = patient_pb.ListPatientsRequest(filter=patient_pb.PatientFilter(name_prefix="ann"))
    token = "l0KjDJTawDpaURBQ6IBpDf3vrI8fakx_cDE"
    assert TOKENS.issue(request, "p1") == token
    assert TOKENS.parse(sent(request, token)) == PageRequest(50, "p1")
