"""A caller with expensive calls does not delay the calls of another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.rpc.two_callers import Caller, two_callers

pytestmark = pytest.mark.slow

SEARCHES, TRANSFERS = 24, 32
CASELOAD = 400


class Scene(NamedTuple):
    """A therapist with many patients, and two callers."""

    other: Caller
    honest: Caller


@pytest.fixture
def scene(database_url: str, tmp_path: Path) -> Iterator[Scene]:
    with two_callers(database_url, tmp_path, threads=64) as (_, other, honest):
        for therapist_id in ("t1", "t2"):
            honest.send("CreateTherapist", therapist_id=therapist_id, therapist={"display_name": "Ann Lee"})

        def add(number: int) -> None:
            honest.send("CreatePatient", patient_id=f"p{number}", patient={"display_name": f"Bob Ray {number}"})
            honest.send("AssignPatient", therapist_id="t1", patient_id=f"p{number}")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(add, range(CASELOAD)))
        yield Scene(other, honest)


def test_another_callers_reads_are_served_while_one_caller_searches_by_name(scene: Scene) -> None:
    def search() -> Any:
        return scene.other.begin("ListPatients", filter={"name_prefix": "bob ray"}, page_size=1000)

    searches = [search() for _ in range(SEARCHES)]
    codes = []
    for number in range(31):
        codes.append(scene.honest.begin("GetPatient", patient_id=f"p{number}").code().name)
        searches = [search() if one.done() else one for one in searches]
    assert codes == ["OK"] * 31
    for one in searches:
        one.cancel()


def test_another_callers_write_comes_before_the_queued_transfers_of_one_caller(scene: Scene) -> None:
    transfers = [scene.other.transfer(validate_only=True) for _ in range(TRANSFERS)]
    scene.honest.send("CreatePatient", patient={"display_name": "Cat Roe"})
    assert sum(not one.done() for one in transfers) > TRANSFERS // 2
    for one in transfers:
        one.cancel()
