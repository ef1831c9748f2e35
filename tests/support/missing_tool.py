"""A program that tests need and that is not installed. tests/support/skips.py skips those tests."""


class NoTool(Exception):
    """A tool is missing. The text begins with "needs " and says how to install it."""
