"""UpdateAssignment over the wire: no corrected period overlaps another."""

from typing import Any

import grpc
import pytest

from tests.support.api_driver import COMPLETED, ENTERED_IN_ERROR, PRIMARY, T0, TREATING, ApiDriver, at, refused

GEOMETRY = {
    "before": (0, 50, False),
    "up to its start": (0, 100, False),
    "a moment into its start": (0, 100.000001, True),
    "over its start": (50, 150, True),
    "the same": (100, 200, True),
    "inside": (120, 180, True),
    "from its start": (100, 150, True),
    "to its end": (150, 200, True),
    "around": (50, 250, True),
    "over its end": (150, 250, True),
    "a moment before its end": (199.999999, 250, True),
    "from its end": (200, 250, False),
    "after": (250, 280, False),
    "empty inside": (150, 150, False),
    "empty at its start": (100, 100, False),
    "empty at its end": (200, 200, False),
}
"""The corrected period (start, end) next to one from 100 to 200, and whether the two overlap."""
NEIGHBOURS = {
    "of the pair": ({"therapist": "t1", "role": TREATING}, TREATING, True),
    "primary, of another therapist": ({"therapist": "t2", "role": PRIMARY}, PRIMARY, True),
    "primary, beside one that is not": ({"therapist": "t2", "role": PRIMARY}, TREATING, False),
    "of another therapist": ({"therapist": "t2", "role": TREATING}, PRIMARY, False),
    "of another patient": ({"therapist": "t1", "role": PRIMARY, "patient": "p2"}, PRIMARY, False),
    "in error": ({"therapist": "t1", "role": PRIMARY, "end_reason": ENTERED_IN_ERROR}, PRIMARY, False),
}


def corrected(api: ApiDriver, period: Any, start: float, end: float, *, refused_for: Any = None) -> None:
    """Corrects a period to these times. Asserts the rejection and the unchanged period if it overlaps."""
    fields = {"start_time": at(start), "end_time": at(end)}
    if refused_for is None:
        api.correct(period.assignment_id, **fields)
        return
    found = refused(api.correct, period.assignment_id, **fields)
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERIOD_OVERLAPS")
    assert found.metadata == {"assignment_id": refused_for.assignment_id}
    assert api.get(period.assignment_id) == period


@pytest.mark.parametrize(("neighbour", "role", "rivals"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_a_corrected_period_never_overlaps_a_period_of_the_pair_or_a_primary_period(
    api: ApiDriver, neighbour: dict[str, Any], role: int, *, rivals: bool
) -> None:
    fields = dict(neighbour)
    therapist_id, patient_id = fields.pop("therapist"), fields.pop("patient", "p1")
    there = api.period(therapist_id, patient_id, 100, 200, **fields)
    for start, end, overlaps in GEOMETRY.values():
        period = api.period("t1", "p1", 300, 400, role=role)
        corrected(api, period, start, end, refused_for=there if overlaps and rivals else None)
        api.correct(period.assignment_id, end_reason=ENTERED_IN_ERROR)  # so that it does not overlap the next case


@pytest.mark.parametrize(("therapist_id", "role"), [("t1", TREATING), ("t2", PRIMARY)], ids=["pair", "primary"])
def test_an_empty_period_overlaps_nothing(api: ApiDriver, therapist_id: str, role: int) -> None:
    api.period(therapist_id, "p1", 150, 150, role=role)
    period = api.period("t1", "p1", 300, 400, role=role)
    for start, end, _ in GEOMETRY.values():
        corrected(api, period, start, end)


@pytest.mark.parametrize(("therapist_id", "role"), [("t1", TREATING), ("t2", PRIMARY)], ids=["pair", "primary"])
def test_a_period_entered_in_error_may_overlap_until_it_is_reinstated(
    api: ApiDriver, therapist_id: str, role: int
) -> None:
    there = api.period(therapist_id, "p1", 100, 200, role=role)
    period = api.period("t1", "p1", 300, 400, role=role, end_reason=ENTERED_IN_ERROR)
    for start, end, overlaps in GEOMETRY.values():
        corrected(api, period, start, end)
        if overlaps:
            found = refused(api.correct, period.assignment_id, "end_reason", end_reason=COMPLETED)
            assert (found.reason, found.metadata["assignment_id"]) == ("PERIOD_OVERLAPS", there.assignment_id)


@pytest.mark.parametrize(("therapist_id", "role"), [("t1", TREATING), ("t2", PRIMARY)], ids=["pair", "primary"])
def test_an_active_period_has_no_end_to_overlap(api: ApiDriver, therapist_id: str, role: int) -> None:
    before = api.period("t1", "p1", 0, 50, role=role)
    active = api.assign(therapist_id, "p1", start_time=at(100), role=role)
    corrected(api, before, 0, 100)
    before = api.get(before.assignment_id)
    corrected(api, before, 0, 100.000001, refused_for=active)
    corrected(api, before, 200, 300, refused_for=active)
    found = refused(api.correct, active.assignment_id, start_time=at(99))
    assert (found.reason, found.metadata["assignment_id"]) == ("PERIOD_OVERLAPS", before.assignment_id)
    api.correct(before.assignment_id, end_time=at(20))
    assert api.correct(active.assignment_id, start_time=at(20)).assignment.start_time.seconds == T0 + 20
