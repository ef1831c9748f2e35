"""One module a service: check, ask, answer."""
