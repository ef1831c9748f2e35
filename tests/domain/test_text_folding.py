"""The keys of identifiers and e-mail addresses."""

import pytest
from caseload_server.domain import text_folding
from caseload_server.domain.text_folding import email_key, identifier_key, tokens
from hypothesis import given
from hypothesis import strategies as st

visible = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)


@pytest.mark.parametrize(
    "value",
    [
        "GC-1\u200b",
        "\ufeffGC-1",
        "G\u200cC\u200d-1",
        "GC\u00ad-1",
        "\uff27\uff23\uff0d\uff11",
        "GC-1\u3000",
        "\u200b GC-1 \u200b",
        "GC-\uff11\ufe0f",
    ],
    ids=ascii,
)
def test_values_that_look_the_same_have_one_key(value: str) -> None:
    assert identifier_key(value) == identifier_key("GC-1") == "GC-1"


@pytest.mark.parametrize("value", ["gc-1", "GC-2", "GC 1", "GC1", "\u0413C-1"], ids=ascii)
def test_other_values_have_another_key(value: str) -> None:
    assert identifier_key(value) != identifier_key("GC-1")


@given(visible)
def test_a_key_is_bounded_and_not_empty(value: str) -> None:
    assert 0 < len(identifier_key(value)) <= 400 or not value.strip()


def test_a_value_whose_key_would_be_much_longer_is_its_own_key() -> None:
    assert identifier_key("\ufdfa" * 200) == "\ufdfa" * 200


@pytest.mark.parametrize("email", ["Nia@Mock.example", "nia@\uff2dock.example", "NIA@mock\u200b.EXAMPLE"], ids=ascii)
def test_addresses_that_differ_in_case_have_one_key(email: str) -> None:
    assert email_key(email) == "nia@mock.example"


def test_callers_that_send_every_character_do_not_fill_the_memory() -> None:
    for first in range(0x20000, 0x2A000, 0x100):
        assert list(tokens("".join(map(chr, range(first, first + 0x100)))))
    assert max(len(text_folding._PLAIN), len(text_folding._CLEANED)) <= 30_000


def test_a_name_of_ligatures_is_read_in_part_and_one_of_letters_with_accents_as_a_whole() -> None:
    assert sum(len(word) for word, _ in tokens("\ufdfa" * 200)) <= 800
    assert tokens("\u1f82" * 200) == [("\u03b1" * 200, text_folding.WORD)]
