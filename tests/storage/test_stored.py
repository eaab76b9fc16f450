"""What comes out of a damaged database, where it is read."""

from __future__ import annotations

from typing import Any

import pytest

from memstore.errors import StoreCorrupt
from memstore.storage import stored


@pytest.mark.parametrize(("last", "before"), [(3, 3), (2, 3), ([1, 2], [1, 2]), ([1, 1], [1, 2])])
def test_a_page_that_leads_back_is_damage(last: Any, before: Any) -> None:
    with pytest.raises(StoreCorrupt, match="the rows of payload come back"):
        stored.onward(last, before, "the rows of payload")


def test_a_page_beyond_the_one_before_is_none() -> None:
    assert stored.onward(4, 3, "the rows") == 4 and stored.onward([1, 3], [1, 2], "the rows") == [1, 3]
    assert stored.onward(1, None, "the rows") == 1
