"""The words of names: whether a record with a name is found by what a person types. All names are invented."""

import itertools
import unicodedata

import pytest
from caseload_server.store.search import name_key, record_words, typed_words
from hypothesis import assume, example, given
from hypothesis import strategies as st

APOSTROPHES = "'`\u00b4\u02b9\u02bb\u02bc\u02be\u02bf\u02c8\u055a\u05f3\u2018\u2019\u201b\u2032\ua78c\uff07"
HYPHENS = [*"-\u00ad\u058a\u05be\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u30a0\ufe63\uff0d"]
SEPARATORS = [*',.;:!?()[]{}"/\\_&+*\u00a0\u00ab\u00b7\u00bf\u201c\u2026\u2022\u2027\u3000\u3001\u30fb\uff0f\uff65']
INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b\u200d\u200e\u2060\u2064\ufe0f\ufeff\U000e0001\U000e0100"


def is_found(stored: str, typed: str) -> bool:
    """Whether a search for what is typed finds a record with the name."""
    words, wanted = record_words(stored, []), typed_words(typed)
    return bool(wanted) and all(any(word.startswith(one) for word in words) for one in wanted)


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("Nia O\u2019Mock", ["o'mock", "omock", "mock", "o mock", "O'Mo", "om", "mo", "o\u00b4mock"]),
        ("'Nia' \u2018Mock\u2019", ["nia mock", "'nia'", "\u2018mock"]),
        ("N'Go'Mock", ["ngomock", "go'mock", "gomock", "mock"]),
        ("\u02bbAna Mock", ["ana", "'ana"]),
        ("Jean-Luc d\u2019Arc-Mock", ["luc", "jean luc", "jeanluc", "darc", "arc", "arcmock", "mock", "jean\u2013luc"]),
        ("Nia O Mock", ["o'mock", "omock", "o mock", "mock"]),
        ("J.R. Mock", ["jr", "jr mock", "j.r. mock", "J R", "j. r."]),
        ("JR Mock", ["J.R. Mock", "jr", "j r"]),
        ("JRM Mock", ["J.R.M. Mock", "jrm", "J R"]),
        ("Nia 't Mock", ["t'mock", "tmock", "'t mock", "mock"]),
        ("Nia Mac Mock", ["macmock", "mac mock", "mock"]),
        ("Nia Dell Mock", ["dell'mock", "dellmock", "mock dell"]),
        ("nia mc mock", ["McMock", "mc mock"]),
        ("Jan van der Mock", ["vandermock", "van dermock", "vander mock", "Mock, Jan van der", "der mock"]),
        ("Nia de la Mock", ["delamock", "lamock", "de la mock", "nia mock"]),
        ("Nia van 't Mock", ["van't mock", "vant mock", "van tmock"]),
        ("St Mock Saint-Mock", ["stmock", "st. mock", "saintmock"]),
        ("Abd al-Mock", ["abdalmock", "abdal-mock", "almock"]),
        ("Nia McMock", ["mc mock", "mcmock", "mock"]),
        ("Nia DeMock OMock", ["de mock", "demock", "o mock", "o'mock"]),
        ("Nia Mock, Ph.D., B.Sc.", ["phd", "ph.d.", "ph d", "bsc", "B. Sc."]),
        ("Nia Mock PhD BSc", ["ph.d.", "phd", "Ph. D.", "b.sc."]),
        ("Gal\u00b7la Mock", ["gal\u00b7la", "gal", "la", "galla"]),
        ("\u00c6gir \u00d8st \u00deor", ["aegir", "\u00e6gir", "ost", "thor", "\u00fe", "AEG"]),
        ("\u00d0an \u0110an \u0126al \u0141uk \u0152uv", ["dan", "hal", "luk", "oeuv", "\u00f0an", "\u0111an"]),
        ("Y\u0131lmock Stra\u00dfe", ["YILMOCK", "yil", "strasse", "STRASSE", "stra\u00df"]),
        ("\u1ebcu Ng\u01b0\u1ee1i", ["eu", "nguoi"]),
        ("\u0391\u039d\u0391\u03a3", ["\u03b1\u03bd\u03b1\u03c2", "\u03b1\u03bd\u03b1\u03c3"]),
        ("\u1fa0\u03b4\u03ae", ["\u03c9\u03b4\u03b7", "\u1fa0\u03b4"]),
        ("\u0401\u043b\u043a\u0430", ["\u0435\u043b\u043a\u0430", "\u0451\u043b"]),
        ("\u0623\u062d\u0645\u062f \u0622\u062f\u0645", ["\u0627\u062d\u0645\u062f", "\u0627\u062f\u0645"]),
        ("\u0645\u062d\u0640\u0640\u0645\u0648\u062f", ["\u0645\u062d\u0645\u0648\u062f"]),
        ("\u0645\u064f\u062d\u064e\u0645\u0651\u062f", ["\u0645\u062d\u0645\u062f"]),
        ("\u0647\u0628\u0629 \u0643\u064a", ["\u0647\u0628\u0647", "\u06a9\u06cc"]),
        ("\u0639\u0628\u062f \u0627\u0644\u0644\u0647", ["\u0639\u0628\u062f\u0627\u0644\u0644\u0647", "\ufdf2"]),
        ("\u0639\u0628\u062f\u0627\u0644\u0644\u0647", ["\u0639\u0628\u062f \u0627\u0644\u0644\u0647"]),
        ("\u0639\u0644\u06cc\u200c\u0633\u0627", ["\u0639\u0644\u06cc\u0633\u0627", "\u0633\u0627 \u0639\u0644\u06cc"]),
        ("\u0639\u0644\u06cc \u0633\u0627", ["\u0639\u0644\u064a\u200c\u0633\u0627"]),
        ("\u05e6\u05d4\u05f4\u05dc", ['\u05e6\u05d4"\u05dc', "\u05e6\u05d4\u05dc", "\u05e6\u05d4\u05f4"]),
        ('\u05e6\u05d4"\u05dc', ["\u05e6\u05d4\u05f4\u05dc", "\u05e6\u05d4''\u05dc"]),
        ("\u05d2\u05f3\u05d5\u05df", ["\u05d2'\u05d5\u05df", "\u05d2\u05d5\u05df"]),
        (
            "\u0646\u0648\u0631\u0627\u0644\u062f\u064a\u0646",
            [
                "\u0646\u0648\u0631 \u0627\u0644\u062f\u064a\u0646",
                "\u0646\u0648\u0631\u0627\u0644\u062f\u064a\u0646",
                "\u0627\u0644\u062f\u064a\u0646",
            ],
        ),
        ("\u0646\u0648\u0631 \u0627\u0644\u062f\u064a\u0646", ["\u0646\u0648\u0631\u0627\u0644\u062f\u064a\u0646"]),
        (
            "\u0639\u0628\u062f\u0627\u0644\u200c\u0631\u062d\u0645\u0646",
            ["\u0627\u0644\u0631\u062d\u0645\u0646", "\u0639\u0628\u062f \u0627\u0644\u0631\u062d\u0645\u0646"],
        ),
        ("\u062e\u0627\u06ba", ["\u062e\u0627\u0646"]),
        ("\u05d0\u05d1\u05e8\u05d4\u05dd", ["\u05d0\u05d1\u05e8\u05d4\u05de", "\u05d0\u05d1\u05e8\u05d4"]),
        ("\u05d0\u05d1\u05e8\u05d4\u05de\u05d9", ["\u05d0\u05d1\u05e8\u05d4\u05dd"]),
        ("\u05f2\u05d3\u05dc", ["\u05d9\u05d9\u05d3\u05dc"]),
        ("\u0989\u09ce\u09b8", ["\u0989\u09a4\u09cd\u200d\u09b8"]),
        ("\u6e21\u9089", ["\u6e21\u8fba", "\u6e21\u908a"]),
        ("\u6e21\u8fba", ["\u6e21\u908a"]),
        ("\u9f4b\u85e4", ["\u658e\u85e4", "\u6589\u85e4"]),
        ("\u6ff5\u7530", ["\u6d5c\u7530", "\u6ff1\u7530"]),
        ("\u674e\u5c0f\u9f8d", ["\u5c0f\u7adc", "\u5c0f\u9f8d"]),
        (
            "\u5c71\u7530 \u592a\u90ce",
            ["\u5c71\u7530\u592a\u90ce", "\u592a\u90ce \u5c71\u7530", "\u7530\u592a", "\u90ce"],
        ),
        ("\u5c71\u7530\u592a\u90ce", ["\u5c71\u7530 \u592a\u90ce", "\u5c71\u7530\u3000\u592a", "\u592a\u90ce"]),
        ("\u674eLee", ["\u674e", "lee", "\u674elee", "\u674e Lee"]),
        ("\u30ac\u30d1 \u3072", ["\uff76\uff9e\uff8a\uff9f", "\u304c\u3071\u3072", "\u304b\u309b", "\u30d2"]),
        ("\ubbf8 \ubaa8\ud06c", ["\ubbf8\ubaa8\ud06c", "\ubaa8", "\u1106\u1169\u110f", "\u3141", "\ubbf8\ubaa8\u314b"]),
        ("\u3131 \ubbf8\ubaa8", ["\ubbf8\ubaa8", "\u3131", "\u3131\ubbf8", "\ubaa8"]),
        ("\u0930\u093e\u092e \u0915\u0943\u0937\u094d\u0923", ["\u0930\u093e", "\u0915\u0943\u0937\u094d\u0923"]),
        ("\u095b\u094b\u092f\u093e", ["\u091c\u094b\u092f\u093e", "\u091c\u093c\u094b"]),
        ("\u0e1a\u0e38\u0e0d\u0e21\u0e35", ["\u0e1a\u0e38\u0e0d", "\u0e1a\u0e38"]),
        ("\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", ["\u0ba4\u0bae\u0bbf", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd"]),
        ("\u0d28\u0d3e\u0d2f\u0d7c", ["\u0d28\u0d3e\u0d2f\u0d30\u0d4d\u200d"]),
        ("\u4f50\u3005\u6728", ["\u4f50\u4f50\u6728", "\u4f50\u3005", "\u3005\u6728", "\u6728"]),
        ("\u4f50\u4f50\u6728", ["\u4f50\u3005\u6728"]),
        ("\u9ad9\u6a4b \U00020bb7", ["\u9ad8\u6a4b", "\u5409", "\u9ad9\u6a4b\U00020bb7"]),
        ("\u5409\U000e0100\u5d0e", ["\U00020bb7\ufa11", "\u5d0e"]),
        (
            "\u30e6\u30fc\u30b3 \uff90-\uff85",
            [
                "\u30e6-\u30b3",
                "\uff95\uff70\uff7a",
                "\u3086\u30fc",
                "\u30df\u30fc\u30ca",
                "\uff90\uff0d\uff85",
                "\u30b3",
            ],
        ),
        (
            "\u30b7\u30e7\u30a6\u30b3 \u30ad\u30e3\u30c3\u30c4",
            [
                "\u30b7\u30e8\u30a6\u30b3",
                "\uff7c\uff96\uff73\uff7a",
                "\u3057\u3087\u3046\u3053",
                "\u30ad\u30e4\u30c4\u30c4",
                "\u304d\u3083\u3063",
            ],
        ),
        ("\uff7c\uff96\uff73\uff7a", ["\u30b7\u30e7\u30a6\u30b3", "\u3057\u3087\u3046"]),
        ("\u4e00\u30f5\u702c", ["\u4e00\u30ab\u702c", "\u4e00\u304b"]),
        ("\u5c71\u3006\u7530", ["\u3006\u7530", "\u5c71\u3006", "\u3006"]),
        ("\u9234\u30f6\u68ee", ["\u9234\u30b1\u68ee", "\u9234\u3051", "\u30f6\u68ee"]),
        ("\u30a4\u30b9\u30fe", ["\u3044\u3059\u305a", "\u3044\u3059\u309e"]),
        ("Nia \u0663 Mock", ["3", "nia \uff13", "\u06f3 mock"]),
        ("\uff2e\uff49\uff41\u3000\uff2d\uff4f\uff43\uff4b", ["nia mock", "mock"]),
        ("\u2162 Mock", ["iii", "\u2162"]),
        ("Nia \U0001f600 Mock", ["nia mock", "\U0001f600", "nia \U0001f601", "\U0001f44d\U0001f3fd mock"]),
    ],
    ids=ascii,
)
def test_a_name_is_found_as_people_write_it(stored: str, typed: list[str]) -> None:
    assert [ascii(one) for one in typed if not is_found(stored, one)] == []


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("Nia Mock", "ock"),
        ("Nia O'Mock", "ock"),
        ("\u0e1a\u0e0d", "\u0e1a\u0e38"),
        ("\u0930\u093e\u092e", "\u0930\u0940"),
        ("\u5c71\u7530", "\u7530\u5c71"),
        ("\u304b\u3073", "\u304c"),
        ("\u304c\u3073", "\u304b"),
        ("\u30d1\u30d4", "\uff8a"),
        ("\U0001f600", "\U0001f601"),
        ("Jim Rae Mock", "jr"),
        ("Leo Mock", "omock"),
        ("Nia Mock", "niamock"),
        ("NIA MOCK", "ock"),
        ("Nia. Mock", "niamock"),
        ("\u062e\u0627\u0644\u062f", "\u0627\u0644\u062f"),
    ],
    ids=ascii,
)
def test_another_name_is_not_found(stored: str, typed: str) -> None:
    assert not is_found(stored, typed)


@pytest.mark.parametrize("apostrophe", APOSTROPHES, ids=ascii)
def test_every_apostrophe_is_the_same(apostrophe: str) -> None:
    stored = f"O{apostrophe}Mock"
    assert all(is_found(stored, one) for one in [*(f"o{typed}mo" for typed in APOSTROPHES), "omock", "mock"])
    assert is_found("Omock", stored)


@pytest.mark.parametrize("mark", [*SEPARATORS, *HYPHENS[:1], *HYPHENS[2:]], ids=ascii)
def test_punctuation_separates_and_never_makes_a_search_miss(mark: str) -> None:
    assert all(is_found(f"Nia{mark}Mock", one) for one in ["nia", "mock", "nia mock", f"mo{mark}", f"mock{mark}nia"])
    assert all(is_found("Nia Mock", one) for one in [f"{mark}nia", f"nia{mark}", f"nia{mark}mo", f"nia {mark} mock"])


@pytest.mark.parametrize("mark", INVISIBLE, ids=ascii)
def test_an_invisible_character_makes_no_difference(mark: str) -> None:
    for stored, typed in itertools.product(
        ["Nia Mock", f"N{mark}ia{mark} Mo{mark}ck"], ["nia mo", f"n{mark}ia m{mark}o"]
    ):
        assert is_found(stored, typed)


letters = st.characters(exclude_categories=["Cs", "Cc", "Cn"])
names = st.lists(st.text(letters, min_size=1, max_size=12), min_size=1, max_size=4).map(" ".join)


@given(names, st.data())
@example("\uac01\uac00", None)
def test_a_name_is_found_by_any_prefix_of_each_of_its_words(name: str, data: st.DataObject | None) -> None:
    name = unicodedata.normalize("NFC", name)
    for word in name.split():
        for end in range(1, len(word) + 1) if data is None else [data.draw(st.integers(1, len(word)))]:
            assume(typed_words(word[:end]) and "\u0345" not in unicodedata.normalize("NFKD", name))
            for typed in (word[:end], unicodedata.normalize("NFD", word[:end]), word[:end].upper()):
                assert is_found(name, typed), (ascii(name), ascii(typed))


@given(names)
def test_words_and_keys_are_bounded_and_hold_no_separator(name: str) -> None:
    words = record_words(name, [name[::-1]] * 10)
    assert words == sorted(set(words))
    assert len(words) <= 256
    assert all(0 < len(word) <= 64 and " " not in word for word in words)
    assert name_key(name) == name_key(unicodedata.normalize("NFD", name.lower()))


def test_the_words_of_a_record_have_a_bound_and_begin_with_the_display_name() -> None:
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    words = record_words("Nia Mock", [long, long[::-1], "Last"])
    assert len(words) == 256
    assert {"nia", "mock"} <= set(words)
    assert {len(word) for word in words} <= {*range(1, 17)}
    assert record_words("x" * 200, []) == ["x" * 64]
    assert is_found("x" * 200, "x" * 100)
    assert len(name_key("\ufdfa" * 200)) == 400


def test_a_typed_word_that_another_one_implies_is_left_out() -> None:
    assert typed_words("Ni Nia n Mock mo") == ["nia", "mock"]
