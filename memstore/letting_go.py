"""Large values are held no longer than the call that writes them, whether it returns or raises."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_until_done(large: MutableSequence[Any]) -> Iterator[None]:
    """Empty the list when the block ends; of an exception, keep the lines and let the variables of its frames go.

    Whoever keeps an exception, such as a logger or the interactive shell, would keep 300 MB with it. Frames that still
    run, the caller's included, are left alone.
    """
    try:
        yield
    except BaseException as exc:
        seen: set[int] = set()
        error: BaseException | None = exc
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        raise
    finally:
        large.clear()
