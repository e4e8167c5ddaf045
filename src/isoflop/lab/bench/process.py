"""A peer's process, driven from here."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.lab.bench.contestant import ContestantError

WORKER = Path(__file__).with_name("worker.py")

_PATIENCE = 10.0  # seconds for a process to end by itself
_QUOTED = 300  # characters of its last words


class PeerProcess:
    """A process that does the work of a case in a peer's own virtual environment.

    Args:
        python: The interpreter of that environment.
        peer: Name of the peer, as `worker.PEERS` has it.
        folder: Where the inputs lie and the outputs go.
        threads: Threads that the peer may use.
        worker: The program that the interpreter runs.
    """

    def __init__(
        self, python: Path, peer: str, folder: Path, threads: int, worker: Path = WORKER
    ) -> None:
        self._folder = folder
        # A file, as nobody would read a pipe before the process blocks on it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        # Some peers know no other way to set their threads.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            environment.pop(name, None)
        try:
            self._process = subprocess.Popen(
                [str(python), str(worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise ContestantError(f"{python} cannot be run: {error}") from error
        try:
            answer = self._ask(op="prepare", peer=peer, folder=str(folder), threads=threads)
        except ContestantError:
            self.close()
            raise
        self.version: str = answer["version"]

    def run(self) -> float:
        """Do the work once and return its seconds, measured over there."""
        return self._ask(op="run")["seconds"]

    def outputs(self) -> dict[str, Tensor]:
        """Do the work once and return its results by name."""
        self._ask(op="outputs")
        with np.load(self._folder / "outputs.npz") as arrays:
            return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            code = self._process.wait()
            raise ContestantError(f"its process ended with code {code}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-_QUOTED:]
