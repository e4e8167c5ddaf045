"""What the figures of a benchmark were measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from isoflop.processor import processor_info, processor_name, usable_cores

INSTRUCTION_SETS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_bf16",
    "asimd", "asimdfhm", "bf16", "sve",
)  # fmt: skip
"""Flags of Linux that matter to kernels, on x86 and Arm."""

BUSY = 0.5
"""Load average (processes that run, on average over a minute) from which a machine counts as busy."""


def describe_machine() -> dict[str, Any]:
    """Describe the processor, memory, software and load.

    What the system does not tell is None or empty. Sizes are in bytes.
    """
    info = processor_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags],
        "caches": _caches(),
        "memory": _memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "compiler": _compiler(),
        "load_average": load,
        "busy": load is not None and load >= BUSY,
    }


def _caches() -> dict[str, int]:
    """Return the sizes of the caches that the first processor uses."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
        units = {"K": 1 << 10, "M": 1 << 20}
        sizes[f"L{level}{letter}"] = int(size.rstrip("KM")) * units.get(size[-1], 1)
    return sizes


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            run = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
            return run.stdout.partition("\n")[0] or None
    return None
