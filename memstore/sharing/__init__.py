"""Keeping processes in step: waiting, the limiter, leases."""
