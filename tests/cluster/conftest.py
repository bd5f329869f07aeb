"""One Ray for all tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray_cluster import running_cluster


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Any]:
    """See `ray_cluster`."""
    with running_cluster() as cluster:
        yield cluster
