"""SECURITY.md: each promise names tests that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.checkout

ROOT: Final = Path(__file__).parents[2]
NAMED: Final = re.compile(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)")


SHOWN_BY: Final = re.compile(r"\[([A-E]\d)\]\(#(tests-[a-z-]+)\)")


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "SECURITY.md").read_text()


def promises(page: str) -> Iterator[list[str]]:
    """The cells of each row: promise, how it is enforced, not promised, and the number that leads to its tests."""
    for line in _section(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "promise":
            yield cells


def shown(page: str) -> Iterator[tuple[str, str]]:
    """Each number of a promise, with the list of the tests that show it."""
    return ((number, text) for number, text in re.findall(r"^- ([A-E]\d): ((?:.|\n  )*)", _section(page), re.MULTILINE))


def unshown(page: str) -> list[str]:
    """The promises without a test, the lists without a promise, and the named tests that do not exist."""
    numbers = [SHOWN_BY.sub(r"\1", cells[-1]) for cells in promises(page)]
    lists = [number for number, text in shown(page) if NAMED.search(text)]
    missing = [] if numbers == lists else sorted({*numbers} ^ {*lists}) or ["order"]
    for test, file in NAMED.findall(page):
        path = ROOT / file
        if not (path.exists() and re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE)):
            missing.append(test)
    return missing


def _section(page: str) -> str:
    return page.partition("## Promises")[2].partition("\n## ")[0]


def test_every_promise_is_shown_by_a_test_that_exists(page: str) -> None:
    rows = list(promises(page))
    assert len(rows) >= 25
    assert {len(cells) for cells in rows} == {4}
    assert all(SHOWN_BY.fullmatch(cells[-1]) for cells in rows)
    assert unshown(page) == []


def test_a_promise_without_a_test_and_a_test_that_does_not_exist_are_found(page: str) -> None:
    [*_, last] = shown(page)
    assert unshown(page.replace(last[1], "none", 1)) == [last[0]]
    assert unshown(page.replace(f"- {last[0]}: {last[1]}", "", 1)) == [last[0]]
    assert len(unshown(page.replace("[`test_", "[`test_no_", 1))) == 1


def test_every_safeguard_and_every_chapter_has_a_row(page: str) -> None:
    safeguards = ["(a)(1)", "(a)(2)(i)", "(a)(2)(ii)", "(a)(2)(iii)", "(a)(2)(iv)", "(b)", "(c)(1)", "(c)(2)", "(d)"]
    for safeguard in [*safeguards, "(e)(1)", "(e)(2)(i)", "(e)(2)(ii)"]:
        assert re.search(rf"^\|.*{re.escape(safeguard)} ", page, re.MULTILINE), safeguard
    named = {
        int(number)
        for row in re.findall(r"^\| (V\d.*?) \|", page, re.MULTILINE)
        for number in re.findall(r"V(\d+)", row)
    }
    assert named == set(range(1, 18))
