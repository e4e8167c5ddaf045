"""Units of work for tests, in a module that other processes can import."""

import errno
import json
import os
from dataclasses import dataclass
from typing import ClassVar

import torch

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce.work import Work


@dataclass(frozen=True, kw_only=True)
class Note(Work):
    """Writes a file that says where it was done; or fails in some way."""

    label: str
    outcome: str = "done"
    before: tuple[Work, ...] = ()

    @property
    def name(self):
        return f"{self.label}.json"

    @property
    def needs(self):
        return self.before

    def result(self, folder):
        path = folder / self.name
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, folder):
        if self.outcome == "mistake":
            raise IsoflopError("This cannot work. Do something else.")
        if self.outcome == "bug":
            raise ZeroDivisionError("division by zero")
        if self.outcome == "full":
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                # As PyTorch does when it cannot finish a file.
                raise RuntimeError("unexpected pos 704 vs 598") from None
        if self.outcome == "killed":
            os._exit(7)
        if self.outcome == "nothing":
            return
        text = json.dumps(
            {
                "process": os.getpid(),
                "threads": torch.get_num_threads(),
                "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "done": [work.result(folder) is not None for work in self.before],
            }
        )
        (folder / self.name).write_text(text)


@dataclass(frozen=True, kw_only=True)
class Lonely(Note):
    """Wants nothing else to run meanwhile."""

    alone: ClassVar[bool] = True
