"""What an operator sees: logs, the access log, metrics, readiness."""
