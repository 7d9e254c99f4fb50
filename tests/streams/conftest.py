"""What tests of streams share."""

from collections.abc import AsyncIterator

import pytest

from tests.streams.works import Works, working


@pytest.fixture
async def works() -> AsyncIterator[Works]:
    """An engine that has to be at rest when the test ends."""
    async with working() as works:
        yield works
