"""One buffer as of one snapshot: counters, strata, rows, stored payloads."""
