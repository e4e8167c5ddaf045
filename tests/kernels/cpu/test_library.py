"""Loading the compiled kernels, and what stands at their boundary."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from isoflop import kernels
from isoflop.errors import KernelError
from isoflop.kernels.cpu import library

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels")


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


WORKS_WITHOUT = """
import torch
from isoflop import kernels
from isoflop.errors import KernelError
from isoflop.kernels.cpu import library
assert not kernels.available() and kernels.isa() is None and kernels.isas() == []
assert kernels.why_unavailable() == "ISOFLOP_NO_KERNELS is set"
torch.manual_seed(0)
dense = torch.nn.Conv2d(4, 8, 3)
sparse = kernels.SparseConv2d.from_dense(dense, torch.rand_like(dense.weight) < 0.5)
x = torch.randn(2, 4, 5, 5)
torch.testing.assert_close(sparse(x), sparse.to_dense()(x))
assert sparse.to("meta")(x.to("meta")).shape == (2, 8, 3, 3)
try:
    library.native()
except KernelError as error:
    print(error)
"""


def test_everything_works_without_kernels():
    code, output = run(WORKS_WITHOUT, ISOFLOP_NO_KERNELS="1")
    assert code == 0, output
    assert "ISOFLOP_NO_KERNELS is set" in output


@needs_kernels
def test_instruction_set_of_the_environment():
    code, output = run("from isoflop import kernels; print(kernels.isa())", ISOFLOP_ISA="portable")
    assert (code, output.strip()) == (0, "portable")
    code, output = run("import isoflop.kernels", ISOFLOP_ISA="mmx")
    assert code != 0
    assert "no kernels for 'mmx'" in output


@needs_kernels
def test_bfloat16_where_there_are_no_instructions_for_it():
    before = kernels.isa()
    assert before is not None
    given = arguments()
    call("forward", given)
    expected = given["y"].clone()
    try:
        kernels.set_isa("portable")
        assert not kernels.has_bfloat16()
        with pytest.raises(ValueError, match="no products of bfloat16"):
            call("forward", {**given, "bfloat16": True})
        # It is a permission, which changes nothing here.
        linear = torch.nn.Linear(6, 8)
        sparse = kernels.SparseLinear.from_dense(linear, torch.rand_like(linear.weight) < 0.5)
        x = torch.randn(3, 6)
        exact = sparse(x)
        sparse.backend = "sparse_bfloat16"
        assert torch.equal(sparse(x), exact)
    finally:
        kernels.set_isa(before)
    assert torch.equal(given["y"], expected)


@needs_kernels
def test_instruction_sets():
    assert kernels.isas()[-1] == "portable"
    assert kernels.isa() in kernels.isas()
    with pytest.raises(KernelError, match="portable"):
        kernels.set_isa("mmx")


ONE_OPENMP = """
import torch
from isoflop import kernels
torch.set_num_threads(2)
dense = torch.nn.Linear(64, 64)
sparse = kernels.SparseLinear.from_dense(dense, torch.rand_like(dense.weight) < 0.5)
sparse(torch.randn(64, 64) @ torch.randn(64, 64))
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if "libgomp" in line or "libiomp" in line}))
"""


@needs_kernels
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_kernels_share_the_threads_of_pytorch():
    code, output = run(ONE_OPENMP)
    assert (code, output.strip()) == (0, "1")


# ---- the boundary: a call that is right, and one wrong thing at a time

OPTIONS = ("bfloat16", "threads")
GEOMETRY = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}


def arguments():
    torch.manual_seed(0)
    shape = (8, 6, 3, 3)
    positions = torch.arange(8 * 6 * 9)[torch.rand(8 * 6 * 9) < 0.4]
    index, _ = kernels.build_index(positions, shape)
    return {
        "x": torch.randn(2, 6, 4, 5),
        "values": torch.randn(index.nnz),
        "index": [index.offsets, index.starts, index.t_entries, index.t_starts],
        "tiling": (1, index.block_in, index.block_out),
        "groups": 1,
        **GEOMETRY,
        "y": torch.empty(2, 8, 4, 5),
        "bias": torch.randn(8),
        "residual": torch.randn(2, 8, 4, 5),
        "activation": "none",
        "bfloat16": False,
        "threads": 1,
    }


def call(name, arguments):
    def capsules(value):
        if isinstance(value, list):
            return [capsules(item) for item in value]
        return torch.to_dlpack(value) if isinstance(value, torch.Tensor) else value

    getattr(library.native(), name)(**{k: capsules(v) for k, v in arguments.items()})


def gradients():
    """Return the arguments of both gradients."""
    given = arguments()
    common = {k: given[k] for k in ("index", "tiling", "groups", *GEOMETRY, *OPTIONS)}
    dy = torch.randn(2, 8, 4, 5)
    return {
        "input_gradient": {
            "dy": dy,
            "values": given["values"],
            "dx": torch.empty_like(given["x"]),
            **common,
        },
        "weight_gradient": {
            "dy": dy,
            "x": given["x"],
            "dvalues": torch.empty_like(given["values"]),
            **common,
        },
    }


def overlapping():
    return torch.zeros(200).as_strided((2, 8, 4, 5), (1, 20, 5, 1))


def unaligned():
    return torch.frombuffer(bytearray(4 * 240 + 1), dtype=torch.float32, offset=1, count=240)


def vast():
    """Return an array whose ends no 64 bits can tell apart; PyTorch makes none."""
    one = np.zeros(1, np.float32)
    return np.lib.stride_tricks.as_strided(one, (2, 6, 4, 5), (2**62, 2**61, 2**61, 4))


WRONG = [
    ({"x": torch.randn(2, 6, 4, 5).double()}, "x has the wrong type"),
    ({"x": torch.randn(2, 6, 4)}, "x must have 4 dimensions"),
    ({"x": torch.randn(3, 6, 4, 5)}, "different numbers of images"),
    ({"x": torch.randn(2, 5, 4, 5)}, "(starts|t_starts) has"),
    ({"x": torch.randn(2, 6, 5, 5)}, "do not fit the kernel"),
    ({"x": vast()}, "larger than memory"),
    ({"x": np.zeros((2, 6, 4, 5), np.float32)[::-1]}, "negative stride"),
    ({"y": overlapping()}, "elements of y share memory"),
    ({"y": torch.empty(1, 8, 4, 5).expand(2, 8, 4, 5)}, "elements of y share memory"),
    ({"values": torch.randn(3)}, "values has 3 numbers"),
    ({"values": torch.randn(400)[::2]}, "without gaps"),
    ({"bias": torch.randn(7)}, "bias has 7 numbers, not 8"),
    ({"residual": torch.randn(2, 8, 4, 4)}, "residual has another shape"),
    ({"activation": "tanh"}, "unknown activation"),
    ({"threads": 0}, "threads"),
    ({"threads": 10**6}, "threads"),
    ({"groups": 0}, "groups"),
    ({"groups": 4}, "groups"),
    ({"stride": (0, 1)}, "do not fit"),
    ({"stride": (2**40, 1)}, "do not fit"),
    ({"padding": (-1, 1)}, "do not fit"),
    ({"padding": (2**62, 1)}, "do not fit"),
    ({"dilation": (2**62, 1)}, "do not fit"),
    ({"kernel": (0, 3)}, "do not fit"),
    ({"kernel": (2**31, 3)}, "do not fit"),
    ({"tiling": (2, 16, 16)}, "rows"),
    ({"tiling": (1, 0, 16)}, "tiles"),
    ({"tiling": (1, 2**40, 16)}, "tiles"),
    ({"tiling": (1, 2**12, 16)}, "tiles"),
    ({"tiling": (1, 2, 16)}, "starts has"),
]


@needs_kernels
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_boundary(change, message):
    given = arguments()
    call("forward", given)
    before = given["y"].clone()
    with pytest.raises(ValueError, match=message):
        call("forward", {**given, **change})
    assert torch.equal(given["y"], before)


@needs_kernels
def test_numbers_that_are_not_aligned_are_refused_by_the_kernels_and_copied_by_the_operators():
    given = arguments()
    x = unaligned().view(2, 6, 4, 5)
    with pytest.raises(ValueError, match="not aligned"):
        call("forward", {**given, "x": x})
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(6, 8, 3)
    sparse = kernels.SparseConv2d.from_dense(dense, torch.rand_like(dense.weight) < 0.5)
    torch.testing.assert_close(sparse(x), sparse.to_dense()(x))


@needs_kernels
@pytest.mark.parametrize("which", range(4))
def test_boundary_of_the_index(which):
    given = arguments()
    for wrong in (
        given["index"][which].long(),
        given["index"][which][:-1],
        given["index"][which].repeat(2),
    ):
        index = [*given["index"]]
        index[which] = wrong
        with pytest.raises(ValueError, match=r"wrong type|numbers, not|damaged"):
            call("forward", {**given, "index": index})


@needs_kernels
def test_outputs_share_no_memory_with_inputs():
    given = arguments()
    with pytest.raises(ValueError, match="y shares memory with residual"):
        call("forward", {**given, "residual": given["y"]})
    shared = torch.randn(700)
    x, y = shared[:240].view(2, 6, 4, 5), shared[200:520].view(2, 8, 4, 5)
    with pytest.raises(ValueError, match="y shares memory with x"):
        call("forward", {**given, "x": x, "y": y})


@needs_kernels
@pytest.mark.parametrize("name", ["input_gradient", "weight_gradient"])
def test_boundary_of_gradients(name):
    given = gradients()[name]
    call(name, given)
    for change, message in [
        ({"dy": torch.randn(2, 7, 4, 5)}, "starts has"),
        ({"dy": torch.randn(2, 8, 4, 5).bfloat16()}, "wrong type"),
        ({"dy": torch.randn(1, 8, 4, 5)}, "images"),
        ({"padding": (0, 1)}, "do not fit"),
        ({"threads": -1}, "threads"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(name, {**given, **change})
    output = "dx" if name == "input_gradient" else "dvalues"
    shared = given["dy"].flatten()[: given[output].numel()].view(given[output].shape)
    with pytest.raises(ValueError, match="shares memory"):
        call(name, {**given, output: shared})
