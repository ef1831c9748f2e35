"""Principals, API keys, certificates and permissions."""
