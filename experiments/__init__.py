"""Experiments through the memory. Their outcome is published, or known in advance."""
