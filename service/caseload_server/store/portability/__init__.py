"""Everything in a store as lines of JSON: export, import, verify."""
