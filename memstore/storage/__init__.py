"""Connections, transactions, tables, dialects and migrations. This room knows nothing about replay."""
