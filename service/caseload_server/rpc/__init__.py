"""What lies around every call."""
