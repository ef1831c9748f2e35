"""Both databases store, compare, order and find text alike, even where locales and case folding differ."""

import json
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from caseload_server.config import Config
from caseload_server.domain import errors
from caseload_server.domain.requests import PageRequest, RecordQuery
from caseload_server.domain.text_folding import identifier_key
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.factory import open_store

from tests.conftest import sqlite_file
from tests.store.conftest import Clock
from tests.store.store_calls import CALL
from tests.support.postgres.databases import Databases

NAMES = [
    *("a", "A", "b", "B", "_", "-a", "a-b", "a b", "ab", "aB", "Z", "z", "zz", "Zz", "a.b", "a,b", "a  b", "æ", "ae"),
    *("\u00e9", "e\u0301", "E", "\u00df", "ss", "SS", "\u1e9e", "\u0130", "I", "\u0131", "i", "\u01c4", "\u01c6"),
    *("\ufb01", "fi", "\u212b", "\u00c5", "A\u030a", "\u2126", "\u03a9", "\uac00", "\u1100\u1161", "\uac01", "日本"),
    *("\U0001f600", "\U0001f469\u200d\u2695\ufe0f", "\ufffd", "\uffee", "\U00010000", "\U0010fffd", "\ue000"),
    *(
        "n\u0303",
        "\u00f1",
        "\u0142",
        "\u0149",
        "O'Brien",
        "O\u2019Brien",
        "100%",
        "100_",
        "a\\b",
        '"',
        "{}",
        ":a",
        "$1",
    ),
    *("\u0660", "\u0967", "\u2460", "\u00bd", "\u05d0", "\u0627", "\u202ea", "\u200ba", "\u00ada"),
]
IDS = ["a", "A", "b", "B", "Z", "a-b", "a_b", "a.b", "ab", "aB", "0", "00", "10", "9", "z", "zz", "-", "_", "~"]


class Both(NamedTuple):
    """Two stores with the same people."""

    sqlite: RelationshipStore
    postgres: RelationshipStore


@pytest.fixture(scope="module")
def both(postgres_databases: Databases) -> Iterator[Both]:
    with sqlite_file() as file, postgres_databases.acquire() as url:
        both = Both(*(open_store(Config(database=one), Clock(1_700_000_000_000_000)) for one in (file, url)))
        for store in both:
            for number, name in enumerate(NAMES):
                stored = unicodedata.normalize("NFC", name)
                identifiers = json.dumps([["s", f"{stored}{number}"]], ensure_ascii=bool(number % 2))
                store.create(PATIENT, f"n{number}", {"display_name": stored, "identifiers": identifiers}, CALL)
            for record_id in IDS:
                store.create(PATIENT, record_id, {"display_name": "Ada"}, CALL)
        yield both
        for store in both:
            store.close()


def listed(store: RelationshipStore, query: RecordQuery) -> list[tuple[str, str, str]]:
    """All matching records, page by page, in order."""
    found: list[tuple[str, str, str]] = []
    after = ""
    while True:
        page = store.list_records(PATIENT, query, PageRequest(7, after))
        found += [(one.patient_id, one.display_name, one.identifiers) for one in page.records]
        if not (after := page.next_after):
            return found


def test_both_databases_list_everyone_in_the_same_order_and_spelling(both: Both) -> None:
    everyone = listed(both.sqlite, RecordQuery())
    assert listed(both.postgres, RecordQuery()) == everyone
    assert [record_id for record_id, _, _ in everyone] == sorted(IDS + [f"n{number}" for number in range(len(NAMES))])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_both_databases_find_the_same_people_by_name(both: Both, name: str) -> None:
    def found(store: RelationshipStore) -> list[tuple[str, str, str]] | str:
        try:
            return listed(store, RecordQuery(name_prefix=name))
        except errors.InvalidField as refused:
            return refused.message

    assert found(both.postgres) == found(both.sqlite)


def test_both_databases_compare_identifiers_by_the_same_keys(both: Both) -> None:
    for number, name in enumerate(NAMES):
        stored = unicodedata.normalize("NFC", name)
        for value in {f"{stored}{number}", f"{stored.swapcase()}{number}", f"{stored}{number}\u200b"}:
            found = [[one for one, _, _ in listed(store, RecordQuery(identifier=("s", value)))] for store in both]
            is_same = identifier_key(value) == identifier_key(f"{stored}{number}")
            assert found == [[f"n{number}"] if is_same else []] * 2


def test_ids_that_differ_in_case_are_different(both: Both) -> None:
    for store in both:
        assert store.get(PATIENT, "a").patient_id == "a"
        assert store.get(PATIENT, "A").patient_id == "A"
        with pytest.raises(errors.PatientNotFound):
            store.get(PATIENT, "a ")
