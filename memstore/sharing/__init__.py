"""Keeping processes in step: limiter, leases, waiting."""
