"""What the system tells about the processor."""

import os
import platform
import subprocess
import sys
from pathlib import Path

_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")


def usable_cores() -> int:
    """Return how many cores this process may use, as far as the system tells; else all that there are."""
    if hasattr(os, "sched_getaffinity"):  # neither macOS nor Windows have it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_info() -> dict[str, str]:
    """Return what Linux says about the first processor; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = text.partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_name() -> str:
    """Return a name that tells processors of different kinds apart."""
    info = processor_info()
    name = info.get("model name") or _apple() or platform.processor() or platform.machine()
    if "cpu family" in info and "model" in info:  # virtual machines tell no more of the name
        name += f" (family {info['cpu family']}, model {info['model']})"
    numbers = [info[key] for key in _ARM if key in info]  # where there is no name
    return f"{name} ({' '.join(numbers)})" if numbers else name


def _apple() -> str | None:
    """Return the name of the processor on macOS, where Python knows the architecture alone."""
    if sys.platform != "darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
