"""Test modules that run as processes of their own, as workers of distributed training do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_workers(module: str, count: int, *arguments: object) -> list[int]:
    """Run a test module as `count` processes at once, and return their exit codes.

    Each gets the arguments and its rank. The module is run by its name, from where `tests` is found.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    workers = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(count)]
    return [worker.wait() for worker in workers]
