"""What of the zoo is not right yet, each by its name."""

from pathlib import Path

import pytest

OPEN = frozenset((Path(__file__).parent / "open.txt").read_text().split())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect what `open.txt` names to fail; take a name off once it is mended."""
    for item in items:
        if item.nodeid.partition("tests/torture/")[2] in OPEN:
            # Not strictly: PyTorch gives some warnings, which fail a test, once in a process.
            item.add_marker(pytest.mark.xfail(reason="not right yet, see open.txt", strict=False))
