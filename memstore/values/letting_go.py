"""Large values are held no longer than the call that writes them, whether it returns or raises."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

LONGEST_CHAIN = 100
"""Causes of causes that are looked at: a chain may be a ring."""


@contextmanager
def held_until_done(large: MutableSequence[Any]) -> Iterator[None]:
    """Empty the list when the block ends; of an exception, keep the lines and let the variables of its frames go.

    Whoever keeps an exception, such as a logger or the interactive shell, would keep 300 MB with it. Frames that still
    run, the caller's included, are left alone.
    """
    handled = sys.exception()  # the caller's own, in whose handler this may run
    try:
        yield
    except BaseException as exc:
        error: BaseException | None = exc
        for _ in range(LONGEST_CHAIN):
            if error is None or error is handled:
                break
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        raise
    finally:
        large.clear()
