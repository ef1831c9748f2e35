"""The rule of birth dates."""

import datetime

import pytest
from caseload_server.validation import rules
from google.type.date_pb2 import Date
from hypothesis import example, given
from hypothesis import strategies as st

from tests.api.client_calls import T0
from tests.validation.rule_calls import apply_rule, takes


@given(st.integers(1840, 2030) | st.integers(-5, 10_001), st.integers(-2, 14), st.integers(-2, 33))
@example(2000, 2, 29)
@example(1900, 2, 29)
@example(2023, 2, 29)
@example(2024, 2, 29)
@example(1980, 0, 0)
@example(1980, 5, 0)
@example(0, 5, 5)
@example(0, 0, 0)
@example(1980, 0, 5)
@example(1849, 12, 31)
@example(1850, 0, 0)
@example(85, 2, 3)
@example(2020, 9, 0)
@example(2020, 10, 0)
@example(2021, 0, 0)
def test_a_birth_date_exists_from_1850_on_and_may_lack_day_or_month(year: int, month: int, day: int) -> None:
    """A partial date is in the future only if all of it is."""
    stored, wrong = apply_rule(rules.birth_date(T0 * 1_000_000), Date(year=year, month=month, day=day))
    try:
        first_day = datetime.date(year, month or 1, day or 1)
    except ValueError:
        assert wrong
    else:
        is_future = first_day > datetime.date(2020, 9, 14)
        assert bool(wrong) == (is_future or year < 1850 or (day != 0 and month == 0))
        assert wrong or stored == "-".join(f"{part:02}" for part in (year, month, day) if part)


@pytest.mark.parametrize(
    ("date", "text"),
    [
        (Date(), "must be a date with a year; month and day are optional"),
        (Date(year=1990, month=2, day=30), "must be a date with a year; month and day are optional"),
        (Date(year=1990, day=3), "must not have a day without a month"),
        (Date(year=85, month=2), "must not lie before 1850"),
        (Date(year=2021), "must not lie in the future"),
    ],
    ids=str,
)
def test_the_violation_of_a_birth_date_says_what_is_wrong(date: Date, text: str) -> None:
    assert apply_rule(rules.birth_date(T0 * 1_000_000), date)[1] == [("path", text)]


@pytest.mark.parametrize(("hour", "day", "allowed"), [(9, 1, True), (9, 2, False), (10, 2, True), (10, 3, False)])
def test_a_birth_date_after_today_in_every_time_zone_is_rejected(hour: int, day: int, *, allowed: bool) -> None:
    """The easternmost time zone is UTC+14: at 10:00 UTC on the 1st, it is the 2nd there."""
    now = datetime.datetime(2024, 3, 1, hour, tzinfo=datetime.UTC)
    rule = rules.birth_date(int(now.timestamp()) * 1_000_000)
    assert takes(rule, Date(year=2024, month=3, day=day)) == allowed
