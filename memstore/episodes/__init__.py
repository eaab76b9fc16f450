"""What comes, what changes, what leaves, and the log of it."""
