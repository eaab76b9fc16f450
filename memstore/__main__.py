"""``python -m memstore``."""

from memstore.cli import main

main()
