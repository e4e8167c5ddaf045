"""Random geometries, on every instruction set that this machine has, against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.conftest import needs_bfloat16

from isoflop import kernels

EPSILON = torch.finfo(torch.float32).eps

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels")


@pytest.fixture(params=[1, 2], ids=lambda count: f"{count}threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@st.composite
def layers(draw, linear=False):
    """Draw what describes a layer and its input."""
    groups = 1 if linear else draw(st.sampled_from([1, 1, 2, 3]))
    rows = draw(st.sampled_from([1, 4]))
    depthwise = not linear and draw(st.integers(0, 4)) == 0
    if depthwise:
        groups = draw(st.integers(1, 8))
    pair = st.tuples(st.integers(1, 1 if linear else 4), st.integers(1, 1 if linear else 4))
    shape = (
        groups * rows * (1 if depthwise else draw(st.integers(1, 20 // rows))),
        1 if depthwise else draw(st.integers(1, 40)),
        *draw(pair),
    )
    steps = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, dilation = ((1, 1), (1, 1)) if linear else (draw(steps), draw(steps))
    padding = (0, 0) if linear else draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = [
        max(1 if linear else draw(st.integers(1, 12)), d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(shape[2:], padding, dilation, strict=True)
    ]
    return {
        "shape": shape,
        "groups": groups,
        "rows": rows,
        "size": (draw(st.integers(0, 40)), groups * shape[1], *size),
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation},
        "density": draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0])),
        "layouts": [draw(st.sampled_from(LAYOUTS)) for _ in range(3)],
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


LAYOUTS = ["contiguous", "channels_last", "batch_innermost", "sliced", "expanded"]


def laid_out(x, layout):
    """Return `x` with its elements elsewhere in memory."""
    if layout == "channels_last":
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    if layout == "batch_innermost":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if layout == "sliced":  # not aligned to more than a float
        room = x.new_zeros([size + 3 for size in x.shape])
        part = room[tuple(slice(1, size + 1) for size in x.shape)]
        return part.copy_(x)
    if layout == "expanded":
        return x[:, :, :1, :1].expand(x.shape)
    return x.contiguous()


def drawn(layer):
    """Return the input, the index, the values, the bias and a generator."""
    generator = torch.Generator().manual_seed(layer["seed"])
    shape, rows = layer["shape"], layer["rows"]
    mask = torch.rand(shape[0] // rows, *shape[1:], generator=generator) < layer["density"]
    mask = mask.repeat_interleave(rows, 0)
    positions = mask.flatten().nonzero().flatten()
    index, _ = kernels.build_index(positions, shape, groups=layer["groups"], rows=rows)
    x = laid_out(torch.randn(layer["size"], generator=generator), layer["layouts"][0])
    values = torch.randn(index.nnz, generator=generator)
    bias = torch.randn(shape[0], generator=generator) if layer["bias"] else None
    return x, index, values, bias, generator


def convolve(layer, x, weight, bias):
    """Return the convolution in float64."""
    bias = None if bias is None else bias.double()
    return F.conv2d(x, weight, bias, groups=layer["groups"], **layer["geometry"])


def absolute(bias):
    return None if bias is None else bias.abs()


def within_rounding(found, expected, magnitude, terms):
    """Assert that sums of `terms` products are off by their rounding at most."""
    bound = (terms + 16) * EPSILON * magnitude.abs()
    assert bool(((found.double() - expected).abs() <= bound).all())


def check_forward_and_gradients(layer, *, bfloat16=False):
    def factor(tensor):
        """Return what is multiplied."""
        return (tensor.bfloat16() if bfloat16 else tensor).detach().double()

    x, index, values, bias, generator = drawn(layer)
    x.requires_grad_()
    values.requires_grad_()
    geometry = {**layer["geometry"], "bfloat16": bfloat16}
    y = kernels.sparse_conv2d(x, values, index, bias, **geometry)
    n, _, height, width = y.shape
    assert y.permute(1, 2, 3, 0).is_contiguous()
    weight = factor(index.to_dense(values)).requires_grad_()
    exact = factor(x).requires_grad_()
    expected = convolve(layer, exact, weight, bias)
    dy = laid_out(torch.randn(y.shape, generator=generator), layer["layouts"][1])
    found = torch.autograd.grad(y, (x, values), dy, retain_graph=True)
    again = torch.autograd.grad(y, (x, values), dy)
    wanted = torch.autograd.grad(expected, (exact, weight), factor(dy))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert torch.equal(y, kernels.sparse_conv2d(x, values, index, bias, **geometry))

    x_size, weight_size = (t.detach().abs().requires_grad_() for t in (exact, weight))
    magnitude = convolve(layer, x_size, weight_size, absolute(bias))
    d_magnitude = torch.autograd.grad(magnitude, (x_size, weight_size), factor(dy).abs())
    products = math.prod(layer["shape"][1:])
    within_rounding(y, expected, magnitude, products)
    within_rounding(found[0], wanted[0], d_magnitude[0], products * layer["shape"][0])
    positions = index.positions()
    within_rounding(
        found[1],
        wanted[1].flatten()[positions],
        d_magnitude[1].flatten()[positions],
        n * height * width,
    )


CHECKS = settings(
    max_examples=40,
    deadline=None,
    # The fixtures set what holds for the whole process, and for all examples alike.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@CHECKS
@given(layers())
def test_convolutions(isa, threads, layer):
    check_forward_and_gradients(layer)


@CHECKS
@given(layers(linear=True))
def test_linear_layers_as_convolutions(isa, threads, layer):
    check_forward_and_gradients(layer)


@needs_bfloat16
@CHECKS
@given(layers())
def test_convolutions_in_bfloat16(threads, layer):
    check_forward_and_gradients(layer, bfloat16=True)


@needs_bfloat16
@CHECKS
@given(layers(linear=True))
def test_linear_layers_in_bfloat16(threads, layer):
    check_forward_and_gradients(layer, bfloat16=True)


@CHECKS
@given(layers(), st.sampled_from(["none", "relu", "gelu", "silu"]))
def test_epilogues(isa, threads, layer, activation):
    x, index, values, bias, generator = drawn(layer)
    plain = kernels.sparse_conv2d(x, values, index, bias, **layer["geometry"])
    residual = laid_out(torch.randn(plain.shape, generator=generator), layer["layouts"][2])
    found = kernels.sparse_conv2d(
        x, values, index, bias, **layer["geometry"], residual=residual, activation=activation
    )
    weight = index.to_dense(values)
    sums = convolve(layer, x.double(), weight.double(), bias) + residual
    size = convolve(layer, x.double().abs(), weight.double().abs(), absolute(bias)) + residual.abs()
    expected = sums if activation == "none" else getattr(F, activation)(sums)
    # None of the activations is steeper than 1.13.
    within_rounding(found, expected, 1.13 * size, math.prod(layer["shape"][1:]))


@CHECKS
@given(layers(linear=True), st.sampled_from(["rows", "features", "batches", "vector"]))
def test_linear_layers(isa, threads, layer, kind):
    x, index, values, bias, generator = drawn(layer)
    x = x[:, :, 0, 0]
    if kind == "features":
        x = x.t().contiguous().t()
    elif kind == "batches":
        x = x.expand(3, *x.shape).transpose(0, 1)
    elif kind == "vector":
        x = torch.randn(x.shape[1], generator=generator)
    x.requires_grad_()
    values.requires_grad_()
    y = kernels.sparse_linear(x, values, index, bias)
    assert y.is_contiguous()
    weight = index.to_dense(values).detach().double()[:, :, 0, 0].requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = F.linear(exact, weight, None if bias is None else bias.double())
    dy = torch.randn(y.shape, generator=generator)
    found = torch.autograd.grad(y, (x, values), dy)
    wanted = torch.autograd.grad(expected, (exact, weight), dy.double())
    x_size, weight_size = (t.detach().abs().requires_grad_() for t in (exact, weight))
    magnitude = F.linear(x_size, weight_size, None if bias is None else bias.double().abs())
    d_magnitude = torch.autograd.grad(magnitude, (x_size, weight_size), dy.double().abs())
    within_rounding(y, expected, magnitude, x.shape[-1])
    within_rounding(found[0], wanted[0], d_magnitude[0], len(weight))
    positions = index.positions()
    within_rounding(
        found[1],
        wanted[1].flatten()[positions],
        d_magnitude[1].flatten()[positions],
        x.numel() // x.shape[-1],
    )


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 15, 16, 17])
def test_few_rows_of_many_inputs_and_outputs(threads, n, rows, groups, bfloat16):
    layer = {
        "shape": (groups * 332, 200, 1, 1),
        "groups": groups,
        "rows": rows,
        "size": (n, groups * 200, 1, 1),
        "geometry": {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
        "density": 0.3,
        "layouts": ["contiguous", "contiguous"],
        "bias": True,
        "seed": n,
    }
    check_forward_and_gradients(layer, bfloat16=bfloat16)


@pytest.mark.parametrize("rows", [1, 4])
def test_inputs_that_are_not_read_may_be_anything(rows):
    torch.manual_seed(0)
    mask = (torch.rand(40 // rows, 100) < 0.2).repeat_interleave(rows, 0)
    mask[:, :3] = False
    index, _ = kernels.build_index(mask.flatten().nonzero().flatten(), (40, 100, 1, 1), rows=rows)
    x, values = torch.randn(2, 100), torch.randn(index.nnz)
    expected = kernels.sparse_linear(x, values, index)
    x[:, 0], x[:, 1], x[:, 2] = math.inf, -math.inf, math.nan
    assert torch.equal(kernels.sparse_linear(x, values, index), expected)
