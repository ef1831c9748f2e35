"""Moves the content of a store between databases as JSON Lines (export, import), and checks its rules (verify)."""
