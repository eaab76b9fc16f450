"""One buffer in one snapshot: counters, settings, blocks, and the rows of its episodes."""
