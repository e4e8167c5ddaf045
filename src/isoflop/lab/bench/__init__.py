"""Timings against dense PyTorch and against the libraries that others use, in one run."""

from isoflop.lab.bench.layer_case import layer_case
from isoflop.lab.bench.machine import describe_machine
from isoflop.lab.bench.model_case import model_case
from isoflop.lab.bench.run import PEERS_FOLDER, run_bench
from isoflop.lab.bench.table import format_machine, format_result

__all__ = [
    "PEERS_FOLDER",
    "describe_machine",
    "format_machine",
    "format_result",
    "layer_case",
    "model_case",
    "run_bench",
]
