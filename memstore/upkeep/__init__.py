"""Work on whole buffers: check, stats, settings, retention, trends, backup."""
