"""Logs, the access log, metrics and readiness."""
