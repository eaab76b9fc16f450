"""One buffer in one snapshot: counters, settings, strata, and the rows of its episodes."""
