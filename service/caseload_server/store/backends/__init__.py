"""The database interface of the store, and its two implementations: SQLite and PostgreSQL."""
