"""The orders of lists."""

import pytest
from caseload_server.domain.requests import BY_ID, Order
from caseload_server.validation import ordering

from tests.validation.rule_calls import apply_rule, takes


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", BY_ID),
        ("  ", BY_ID),
        ("display_name", Order("name_key")),
        ("  display_name   desc ", Order("name_key", descending=True)),
        ("update_time", Order("updated_us")),
        ("update_time desc", Order("updated_us", descending=True)),
    ],
)
def test_an_order_is_a_field_and_desc_with_any_number_of_spaces(text: str, order: Order) -> None:
    assert apply_rule(ordering.record_order, text) == (order, [])


@pytest.mark.parametrize(
    "text",
    [
        *("display_name asc", "display_name DESC", "Display_name", "displayName", "display_name,update_time", "desc"),
        *("display_name desc desc", "display_name,", "display_name\tdesc", "display_name\u00a0desc", "name_key"),
        *("start_time", "email", "birth_date", "x" * 1000),
    ],
)
def test_another_order_is_rejected_and_the_valid_ones_are_named(text: str) -> None:
    description = 'must be empty or one of "display_name", "display_name desc", "update_time", "update_time desc"'
    assert apply_rule(ordering.record_order, text) == (BY_ID, [("path", description)])


def test_a_caseload_is_ordered_by_other_fields() -> None:
    texts = ("display_name", "start_time", "start_time desc")
    orders = [Order("name_key"), Order("start_us"), Order("start_us", descending=True)]
    assert [apply_rule(ordering.caseload_order, text) for text in texts] == [(order, []) for order in orders]
    assert not takes(ordering.caseload_order, "display_name desc")
    assert not takes(ordering.caseload_order, "update_time")
