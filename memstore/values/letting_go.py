"""Frees large values at the end of the call that writes them, even if the call raises."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

LONGEST_CHAIN = 100
"""At most this many causes of an exception are followed. A chain of causes may be a ring."""


@contextmanager
def held_until_done(large: MutableSequence[Any]) -> Iterator[None]:
    """Empty the list when the block ends. If an exception ends it, also clear the variables of the exception's frames.

    A logger or the interactive shell may keep an exception, and with it a value of 300 MB. The traceback keeps its
    lines. Frames that still run, such as the caller's, are not changed.
    """
    handled = sys.exception()  # this may run while the caller handles an exception, which must stay as it is
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
