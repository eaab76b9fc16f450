"""Experiments whose outcome is published or known in advance, run through the memory."""
