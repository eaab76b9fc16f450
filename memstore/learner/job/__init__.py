"""The job that `memstore train` runs: datasets, training, metrics."""
