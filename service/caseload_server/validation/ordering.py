"""The orders of lists, as the field order_by names them (https://google.aip.dev/132#ordering)."""

from collections.abc import Mapping

from caseload_server.domain.requests import BY_ID, Order
from caseload_server.validation.rules import Rule, ValidationErrors


def _order_by(orders: Mapping[str, Order]) -> Rule:
    """Returns the rule for an order. Extra spaces in it do not matter.

    Args: orders, by their texts: a field, or a field and "desc".
    """
    description = "must be empty or one of " + ", ".join(f'"{text}"' for text in orders)

    def rule(value: str, path: str, violations: ValidationErrors) -> Order:
        text = " ".join(filter(None, value.split(" "))) if value else ""
        if text and text not in orders:
            violations.add(path, description)
        return orders.get(text, BY_ID)

    return rule


record_order = _order_by(
    {
        "display_name": Order("name_key"),
        "display_name desc": Order("name_key", descending=True),
        "update_time": Order("updated_us"),
        "update_time desc": Order("updated_us", descending=True),
    }
)
"""The order of therapists or patients."""
caseload_order = _order_by(
    {
        "display_name": Order("name_key"),
        "start_time": Order("start_us"),
        "start_time desc": Order("start_us", descending=True),
    }
)
"""The order of the assignments of one therapist or patient. The name is that of the other side."""
