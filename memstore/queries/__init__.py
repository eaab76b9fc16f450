"""Conditions and queries: what a user can ask of the memory, and its SQL."""
