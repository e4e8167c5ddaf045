"""Run the kernel tests on the build with sanitizers, which is on PYTHONPATH."""

import sys

import pytest

# The installation for development would be found first.
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]

from isoflop.kernels.cpu import library  # noqa: E402

assert "sanitize" in str(library.native().__file__), library.native().__file__
sys.exit(
    pytest.main(
        [
            "-q",
            "tests/kernels/test_fuzz.py",
            "tests/kernels/cpu/test_library.py",
            "tests/kernels/cpu/test_norm.py",
        ]
    )
)
