"""Tools that keep processes in step: waiting, the limiter, leases."""
