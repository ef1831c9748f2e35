"""Who calls, and what they may do: keys, certificates, permissions."""
