"""What `memstore train` does."""
