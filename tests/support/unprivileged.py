"""Work as a user who may do little, also where the tests run as root."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def as_nobody(folder: Path, work: Callable[[], object]) -> None:
    """Run ``work`` in a forked child, which is nobody if this process is root; an exception fails the test.

    The child must be able to reach ``folder``, whose parents are opened for that.
    """
    if os.geteuid() == 0:
        for place in (folder, *folder.parents):
            if place.stat().st_mode & 0o005 != 0o005:
                place.chmod(place.stat().st_mode | 0o055)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
            said = ""
        except BaseException:
            said = traceback.format_exc()
        os.write(write, said.encode()[-60_000:])
        os._exit(bool(said))
    os.close(write)
    with os.fdopen(read) as told:
        said = told.read()
    os.waitpid(child, 0)
    assert not said, said
