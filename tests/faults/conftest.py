"""One laboratory for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults.outcomes import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The inputs of all commands."""
    yield Lab(tmp_path_factory.mktemp("faults"))
