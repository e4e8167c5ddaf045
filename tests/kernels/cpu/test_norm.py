"""Batch normalisation of rows, on every instruction set, against PyTorch in float64."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.library import opcheck

from isoflop import kernels
from isoflop.kernels.cpu import library
from isoflop.kernels.cpu.layout import LayoutBatchNorm2d, is_batch_innermost, to_batch_innermost
from isoflop.kernels.cpu.norm import batch_norm, batch_norm_gradient

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="no compiled kernels"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

EPS = 1e-5


def innermost(*shape, scale=1.0, shift=0.0):
    return to_batch_innermost(scale * torch.randn(shape) + shift)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=st.integers(1, 70),
    c=st.integers(1, 5),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    shift=st.sampled_from([0.0, 3.0, -1000.0]),
    affine=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_size(isa, n, c, h, w, shift, affine, threads, seed):
    torch.manual_seed(seed)
    n += n * h * w == 1  # which PyTorch refuses to normalise
    x, dy = innermost(n, c, h, w, shift=shift), innermost(n, c, h, w)
    weight, bias = torch.randn(2, c).unbind() if affine else (None, None)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    expected = F.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=EPS)  # pyright: ignore
    wanted = torch.autograd.grad(expected, leaves, dy.double())

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, mean, variance = batch_norm(x, weight, bias, EPS)
        gradients = batch_norm_gradient(dy, x, weight, mean, variance, EPS)
        again = (
            batch_norm(x, weight, bias, EPS),
            batch_norm_gradient(dy, x, weight, mean, variance, EPS),
        )
    finally:
        torch.set_num_threads(before)
    assert is_batch_innermost(y)
    assert is_batch_innermost(gradients[0])
    rows = x.transpose(0, 1).flatten(1).double()
    close = functools.partial(torch.testing.assert_close, check_dtype=False)
    close(mean, rows.mean(1), rtol=1e-6, atol=1e-6)
    close(variance, rows.var(1, correction=0), rtol=1e-4, atol=1e-6)
    # What the mean is off by, in units of the spread.
    factor = float((variance + EPS).rsqrt().max())
    blur = 1e-5 + 1e-7 * abs(shift) * factor
    size = 1.0 if weight is None else float(weight.abs().max())
    close(y, expected, rtol=1e-3, atol=10 * blur * size)
    close(
        gradients[0], wanted[0], rtol=1e-3, atol=10 * blur * size * factor * float(dy.abs().max())
    )
    if affine:
        total = float(dy.abs().sum())
        close(gradients[1], wanted[1], rtol=1e-3, atol=blur * total)
        close(gradients[2], wanted[2], rtol=1e-5, atol=1e-6 * total)
    for one, other in zip((y, mean, variance, *gradients), (*again[0], *again[1]), strict=True):
        assert torch.equal(one, other)


def test_rows_larger_than_the_caches(isa):
    torch.manual_seed(0)
    x = innermost(64, 9, 128, 128, scale=2.0, shift=1.0)[..., :127]
    x = to_batch_innermost(x.contiguous())
    y, mean, variance = batch_norm(x, None, None, EPS)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True), rtol=1e-4, atol=1e-5)
    dy = innermost(*x.shape)
    dx, _, dbias = batch_norm_gradient(dy, x, None, mean, variance, EPS)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.batch_norm(leaf, None, None, training=True), leaf, dy)
    torch.testing.assert_close(dx, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(dbias, dy.sum((0, 2, 3)), rtol=1e-3, atol=1e-1)


def test_nan_stays():
    x = innermost(4, 3, 2, 2)
    x[1, 1, 0, 0] = float("nan")
    y, _, _ = batch_norm(x, None, None, EPS)
    assert torch.equal(y.isnan().flatten(2).any(2).any(0), torch.tensor([False, True, False]))


@pytest.mark.parametrize("affine", [True, False])
def test_operators(affine):
    weight, bias = torch.randn(2, 3).unbind() if affine else (None, None)
    wanted = [t if t is None else t.clone().requires_grad_() for t in (weight, bias)]
    opcheck(batch_norm, (innermost(5, 3, 2, 4), weight, bias, EPS))
    opcheck(batch_norm, (innermost(5, 3, 2, 4).requires_grad_(), *wanted, EPS))
    x = innermost(5, 3, 2, 4)
    _, mean, variance = batch_norm(x, weight, bias, EPS)
    opcheck(batch_norm_gradient, (innermost(5, 3, 2, 4), x, weight, mean, variance, EPS))


@pytest.mark.parametrize("layout", ["innermost", "contiguous", "expanded"])
def test_gradients_of_any_order_are_those_of_pytorch(layout):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3)
    nn.init.normal_(plain.weight)
    ours = LayoutBatchNorm2d(3)
    ours.load_state_dict(plain.state_dict())
    x, dy = innermost(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    if layout == "innermost":
        dy = to_batch_innermost(dy)
    elif layout == "expanded":
        dy = dy[..., :1, :1].expand(6, 3, 4, 4)
    found = []
    for module, dtype in ((plain.double(), torch.float64), (ours, torch.float32)):
        leaf = x.to(dtype, copy=True).requires_grad_()
        inputs, gradient = [leaf, *module.parameters()], dy.to(dtype)
        first = torch.autograd.grad(module(leaf), inputs, gradient, retain_graph=True)
        again = torch.autograd.grad(module(leaf).square(), inputs, gradient, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in again]).sum(), inputs)
        found.append([*first, *again, *second])
    for expected, ours in zip(*found, strict=True):
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4 * scale)


def test_modules_use_it_where_they_can(monkeypatch):
    calls = []
    real = library.native().normalize

    class Native:
        def __getattr__(self, name):
            return getattr(library._native, name)

        def normalize(self, *args, **options):
            calls.append(args[0])
            return real(*args, **options)

    native = Native()
    monkeypatch.setattr(library, "native", lambda: native)
    module = LayoutBatchNorm2d(3)
    x = innermost(6, 3, 4, 4)
    module(x)
    assert len(calls) == 1
    module(x.contiguous())  # another layout
    copy.deepcopy(module).double()(x.double())
    module.eval()(x)
    assert len(calls) == 1
    LayoutBatchNorm2d(3, track_running_stats=False).eval()(x)
    assert len(calls) == 2
    monkeypatch.setattr(library, "available", lambda: False)
    module.train()(x)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="more than 1 value"):
        module(to_batch_innermost(torch.randn(1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(4, 3, 2, 2)}, "batch innermost"),
        ({"y": innermost(4, 3, 2, 3)}, "differ in size"),
        ({"mean": torch.zeros(2)}, "mean has 2 numbers, not 3"),
        ({"weight": torch.zeros(4)}, "weight has 4 numbers, not 3"),
        ({"x": innermost(4, 3, 2, 2).double()}, "wrong type"),
        ({"threads": 0}, "threads"),
        ({"x": innermost(0, 3, 2, 2), "y": innermost(0, 3, 2, 2)}, "nothing"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "x": innermost(4, 3, 2, 2),
        "weight": torch.ones(3),
        "bias": torch.ones(3),
        "eps": EPS,
        "y": innermost(4, 3, 2, 2),
        "mean": torch.zeros(3),
        "variance": torch.zeros(3),
        "threads": 1,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        library.native().normalize(**arguments)


def test_outputs_that_share_memory():
    x = innermost(4, 3, 2, 2)
    rows = torch.zeros(3), torch.zeros(3)
    with pytest.raises(ValueError, match="y shares memory with x"):
        library.native().normalize(x, None, None, EPS, x, *rows, threads=1)
    with pytest.raises(ValueError, match="mean shares memory with variance"):
        library.native().normalize(
            x, None, None, EPS, torch.empty_like(x), rows[0], rows[0], threads=1
        )
    with pytest.raises(ValueError, match="dweight shares memory with mean"):
        library.native().normalize_gradient(
            x, x, None, *rows, EPS, torch.empty_like(x), rows[0], torch.zeros(3), threads=1
        )
