"""One thread of linear algebra for each trial."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def one_thread() -> AbstractContextManager[object]:
    """Return a block in which numpy computes with one thread.

    On matrices as small as here more threads are slower, and trials that run at the same time would compete for the
    cores. Without threadpoolctl, which is installed with scikit-learn, nothing changes.
    """
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
