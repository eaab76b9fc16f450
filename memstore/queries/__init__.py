"""Conditions and queries: the questions that a user can ask the memory, and their SQL."""
