"""Kernels are offered where every instruction that they were compiled with runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
BUILD = (CSRC / "CMakeLists.txt").read_text()
TESTS = (CSRC / "processor.cpp").read_text()
BASE = ["x86-64", "sse3", "ssse3", "sse4_1", "sse4_2", "avx", "crc32", "xsave"]
"""What every processor with AVX2 has."""

SETS = {
    "avx2": ("runs_avx2", "X86_FLAGS_AVX2", ""),
    "avx512": ("runs_avx512", "X86_FLAGS_AVX512", ""),
    "avx512_bfloat16": ("runs_avx512_bfloat16", "X86_FLAGS_AVX512", "-mavx512bf16"),
}


def flags_of(name):
    line = re.search(rf"set\({name} ([^)]*)\)", BUILD)
    assert line is not None
    return [flag for flag in line[1].split() if flag.startswith("-m") and "=" not in flag]


def asked_for(function):
    """Return the extensions that a test and the tests that it calls ask for."""
    body = re.search(rf"bool {function}\(\) \{{(.*?)\}}", TESTS, re.DOTALL)
    assert body is not None
    names = set(re.findall(r'supports\("(\w+)"\)', body[1]))
    return names.union(*(asked_for(other) for other in re.findall(r"(runs_\w+)\(\)", body[1])))


@pytest.mark.parametrize("name", SETS)
def test_every_flag_is_asked_for(name):
    function, variable, more = SETS[name]
    flags = [*flags_of(variable), *([more] if more else [])]
    assert {flag.removeprefix("-m") for flag in flags} <= asked_for(function)


@pytest.mark.parametrize("name", SETS)
def test_every_extension_that_the_compiler_turns_on_is_asked_for(name):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no compiler")
    function, variable, more = SETS[name]

    def extensions(*flags):
        command = [compiler, *flags, "-dM", "-E", "-x", "c++", "/dev/null"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            pytest.skip(f"no compiler for x86: {run.stderr}")
        names = re.findall(r"#define __(\w+?)__ 1\n", run.stdout)
        return {name.lower() for name in names if re.match("AVX|FMA|F16C|BMI|POPCNT|LZCNT", name)}

    flags = [*flags_of(variable), *([more] if more else [])]
    assert extensions(*flags) - extensions() - set(BASE) <= asked_for(function)


def test_no_other_file_asks():
    # By suffix: a build in place leaves binary files beside the sources.
    sources = [*CSRC.glob("*.cpp"), *CSRC.glob("*.h")]
    askers = [source.name for source in sources if "__builtin_cpu" in source.read_text()]
    assert askers == ["processor.cpp"]
