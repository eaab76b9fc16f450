"""What the proofs of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.engine.answers", "tests.engine.replica")

from tests.engine.elsewhere import Elsewhere  # noqa: E402


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Another process, which every test tells what to open."""
    process = Elsewhere()
    yield process
    process.end()
