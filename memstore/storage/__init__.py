"""Connections, transactions, tables, dialects and migrations; knows no replay."""
