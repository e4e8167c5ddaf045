"""The process that does one unit of work.

Importing this module imports what training needs, once for all the processes that are forked off the
one that did.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from isoflop.kernels import retain_freed_memory
from isoflop.lab.reproduce.work import Work, execute

for _library in ("accelerate", "torch.utils.tensorboard"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_library)


def main(
    connection: Connection, work: Work, folder: Path, threads: int, environment: Mapping[str, str]
) -> None:
    """Do a unit of work and send why it failed, or None.

    Args:
        connection: Where to send it.
        work: The work.
        folder: Where its result goes.
        threads: Threads that it may take.
        environment: Environment variables to set, before CUDA looks at them.
    """
    # Who interrupts the command ends this process too, by the command's hand; and where the command
    # was killed, a run that goes on would keep the next one out of its directory.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= environment
    retain_freed_memory()
    torch.set_num_threads(threads)
    connection.send(execute(work, folder))
    connection.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
