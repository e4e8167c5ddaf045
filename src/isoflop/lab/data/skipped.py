"""Images that could not be read."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch.distributed as dist

from isoflop.errors import DataError

LIMIT = 0.01
"""Part of the images of a split that may be unreadable."""


class Skipped:
    """The list of images that could not be read, each once."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __iter__(self) -> Iterator[dict[str, str]]:
        for (split, name), reason in sorted(self._reasons.items()):
            yield {"split": split, "file": name, "reason": reason}

    def add(self, entries: Iterable[Mapping[str, Any]], limits: Mapping[str, int]) -> None:
        """Note images that could not be read.

        Args:
            entries: Their split, file and reason.
            limits: How many are tolerated by split.

        Raises:
            DataError: There are more now than that.
        """
        for entry in entries:
            self._reasons[entry["split"], entry["file"]] = entry["reason"]
        for split, limit in limits.items():
            found = [file for where, file in sorted(self._reasons) if where == split]
            if len(found) > limit:
                raise DataError(
                    f"{len(found)} images of {split!r} or more cannot be read, which is over "
                    f"{LIMIT:.0%}, such as {found[0]}: {self._reasons[split, found[0]]}. Repair or "
                    "remove them; the run can be resumed from its last epoch."
                )

    def join(self, limits: Mapping[str, int]) -> None:
        """Make the list that of all processes; called by all of them together."""
        if dist.is_available() and dist.is_initialized():
            lists: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(lists, list(self))
            self.add((entry for entries in lists for entry in entries), limits)

    def replace(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Make the list that of a checkpoint."""
        self._reasons.clear()
        self.add(entries, {})
