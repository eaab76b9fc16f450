"""Whole-buffer work: check, stats, settings, retention, backup."""
