"""Blocks, heads and the copy, and the draws from them, against a dict of episodes; no database."""
