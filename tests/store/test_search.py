"""Which records a name search finds."""

import unicodedata

import pytest
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.search import typed_words
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.store.store_calls import AnyKind, both_kinds, delete, ids, make, update


@both_kinds
@pytest.mark.parametrize(
    ("name", "found", "not_found"),
    [
        (
            "Zoë Müller-Lüdenscheidt",
            ["zoe", "ZOË", "mul", "lüden", "Mü zo", "müller-lü", "mullerlu"],
            ["oe", "mueller", "zoe x"],
        ),
        ("O'Brien", ["o'b", "O'BRIEN", "obrien", "brien", "o b"], ["rien"]),
        ("100% Anna_Maria", ["100%", "anna_", "Anna_M", "an%", "maria"], ["aria"]),
        ("Straße Groß", ["STRASSE", "strass", "gross", "groß"], ["grob"]),
        ("ΟΔΥΣΣΕΥΣ Παπάς", ["οδυσσευς", "Οδυσσεύς", "παπας", "ΠΑΠ"], ["υσσ"]),  # noqa: RUF001 - Greek
        ("Łukasz Sørensen", ["łukasz", "lukasz", "SORENSEN"], ["ukasz"]),
        ("Yıldız", ["yıldız", "YILDIZ", "yil"], ["ldiz"]),  # noqa: RUF001 - dotless
        ("İstanbul Çelik", ["istanbul", "celik", "ÇELİK"], ["stan"]),
        ("ﬁona ｗｉｄｅ", ["fi", "fio", "wide"], ["ona"]),  # noqa: RUF001 - wide on purpose
        ("李 小龍", ["李", "小", "小龍", "龍", "李小龍", "小龍 李"], ["龍李"]),
        ("김철수", ["김", "김철", "기", "철수", "김 철수"], ["수김"]),
        ("a\u0301e\u0301 x", ["áé", "ae", "AÉ x"], ["e"]),
        ("Anna\u00a0Lena\u3000Ida\u2013Eva", ["lena", "ida", "eva", "anna lena ida eva"], ["nn"]),
        ("x' OR 1=1 --", ["x' or", "1=1"], ["y' or '1'='1"]),
        ('"*" NEAR(a b)', ["near(a", "b)", '"near*', "ab"], ["near(c"]),
        ("😀 Smile", ["😀", "smi", "smile 😁"], ["😁"]),
        ("Aa Aa Ab", ["aa ab", "aa aa", "a"], ["ac"]),
    ],
    ids=lambda value: None if isinstance(value, list) else ascii(value),
)
def test_a_search_finds_names_by_the_prefixes_of_their_words(
    store: RelationshipStore, kind: AnyKind, name: str, found: list[str], not_found: list[str]
) -> None:
    make(store, kind, "it", display_name=unicodedata.normalize("NFC", name))
    make(store, kind, "decoy", display_name="Quentin")
    for prefix in found:
        assert ids(store, kind, name_prefix=prefix) == ["it"], ascii(prefix)
    for prefix in not_found:
        assert ids(store, kind, name_prefix=prefix) == [], ascii(prefix)


@both_kinds
def test_a_search_finds_a_renamed_record_only_by_its_new_name(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a", display_name="Ada Lovelace")
    update(store, kind, "a", display_name="Ada King")
    assert (ids(store, kind, name_prefix="love"), ids(store, kind, name_prefix="ki")) == ([], ["a"])
    delete(store, kind, "a")
    assert ids(store, kind, name_prefix="ki", show_deleted=True) == ["a"]


# Without the Greek iota subscript: its capital is a separate letter.
IOTA_SUBSCRIPT = [c for c in map(chr, range(0x300, 0x2000)) if "\u0345" in unicodedata.normalize("NFKD", c)]
characters = st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co", "Z"], exclude_characters=IOTA_SUBSCRIPT)
words = st.text(characters, min_size=1, max_size=12)


@pytest.mark.slow
# The examples share a store. Each one works on a record of its own.
@given(name=st.lists(words, min_size=1, max_size=4), data=st.data())
def test_a_search_finds_a_name_by_any_prefix_of_any_word(
    store: RelationshipStore, name: list[str], data: st.DataObject
) -> None:
    display_name = unicodedata.normalize("NFC", " ".join(name))
    made = make(store, THERAPIST, "", display_name=display_name)[0]
    word = data.draw(st.sampled_from(display_name.split(" ")))
    length = data.draw(st.integers(1, len(word)))
    assume(typed_words(word[:length]))  # the store rejects a text without a word
    for prefix in (word[:length], word[:length].upper(), unicodedata.normalize("NFD", word[:length])):
        assert made in ids(store, THERAPIST, name_prefix=prefix), ascii(prefix)
