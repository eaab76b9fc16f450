"""The cost of memstore, beside code that one would write by hand: ``python -m benchmarks --help``."""
