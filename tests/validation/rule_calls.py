"""Calls of single rules."""

from typing import Any

from caseload_server.validation.rules import Rule, ValidationErrors


def apply_rule(rule: Rule, value: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Applies a rule to a value; returns the normalized value and the violations."""
    violations = ValidationErrors()
    stored = rule(value, "path", violations)
    return stored, [(violation.field, violation.description) for violation in violations]


def takes(rule: Rule, value: Any) -> bool:
    return not apply_rule(rule, value)[1]
