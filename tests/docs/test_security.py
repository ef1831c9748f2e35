"""SECURITY.md: each promise names tests that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.checkout

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "SECURITY.md").read_text()
NAMED: Final = re.compile(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)")


def promises(page: str) -> Iterator[list[str]]:
    """The cells of each row: promise, how it is enforced, shown by, not promised."""
    _, _, rest = page.partition("## Promises")
    for line in rest.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "promise":
            yield cells


def unshown(page: str) -> list[str]:
    """The promises without a test, and the named tests that do not exist."""
    rows = list(promises(page))
    missing = [cells[0] for cells in rows if not NAMED.search(cells[2])]
    for test, file in NAMED.findall(page):
        path = ROOT / file
        if not (path.exists() and re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE)):
            missing.append(test)
    return missing


def test_every_promise_is_shown_by_a_test_that_exists() -> None:
    rows = list(promises(PAGE))
    assert len(rows) >= 25
    assert {len(cells) for cells in rows} == {4}
    assert unshown(PAGE) == []


def test_a_promise_without_a_test_and_a_test_that_does_not_exist_are_found() -> None:
    [_, enforced, shown, _] = next(promises(PAGE))
    invented = shown.replace("[`test_", "[`test_no_", 1)
    assert len(unshown(PAGE.replace(shown, invented, 1))) == 1
    assert len(unshown(PAGE.replace(f"{enforced} | {shown}", f"{enforced} | none", 1))) == 1


def test_every_safeguard_and_every_chapter_has_a_row() -> None:
    safeguards = ["(a)(1)", "(a)(2)(i)", "(a)(2)(ii)", "(a)(2)(iii)", "(a)(2)(iv)", "(b)", "(c)(1)", "(c)(2)", "(d)"]
    for safeguard in [*safeguards, "(e)(1)", "(e)(2)(i)", "(e)(2)(ii)"]:
        assert re.search(rf"^\|.*{re.escape(safeguard)} ", PAGE, re.MULTILINE), safeguard
    named = {
        int(number)
        for row in re.findall(r"^\| (V\d.*?) \|", PAGE, re.MULTILINE)
        for number in re.findall(r"V(\d+)", row)
    }
    assert named == set(range(1, 18))
