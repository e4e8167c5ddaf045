"""The kernels as PyTorch operators: gradients, fake versions, compilation, export."""

import functools

import pytest
import torch
from torch import nn
from torch.library import opcheck

from isoflop import kernels
from isoflop.errors import KernelError
from isoflop.kernels import SparseConv2d, SparseLinear
from isoflop.kernels.cpu import ops

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="no compiled kernels"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

PRECISIONS = (False, True) if kernels.has_bfloat16() else (False,)

# The kernels are linear in everything that has a gradient, so differences need not be small.
gradcheck, gradgradcheck = (
    functools.partial(check, eps=0.5, atol=1e-3, rtol=1e-3)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck)
)


def batch_innermost(x):
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def convolution(groups=1, rows=1, **options):
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 16, 3, groups=groups, **options)
    mask = torch.rand(16 // rows, *dense.weight.shape[1:]).repeat_interleave(rows, 0) < 0.4
    return SparseConv2d.from_dense(dense, mask, rows=rows)


def linear(inputs=12, outputs=8, rows=1):
    torch.manual_seed(0)
    dense = nn.Linear(inputs, outputs)
    mask = torch.rand(outputs // rows, inputs).repeat_interleave(rows, 0) < 0.4
    return SparseLinear.from_dense(dense, mask, rows=rows)


def parts(layer):
    index = layer.index
    tensors = (index.offsets, index.starts, index.t_entries, index.t_starts)
    return tensors, index.shape, index.groups, (index.rows, index.block_in, index.block_out)


def convolution_samples():
    for layer, x in [
        (convolution(stride=2, padding=1), torch.randn(3, 8, 7, 6)),
        (convolution(groups=2, padding=(0, 2)), batch_innermost(torch.randn(4, 8, 5, 5))),
        (convolution(rows=4), torch.randn(1, 8, 5, 5)),
        (convolution(), torch.randn(0, 8, 5, 5)),
    ]:
        index, *numbers = parts(layer)
        dy = torch.randn_like(layer(x))
        for bfloat16 in PRECISIONS:
            geometry = (*numbers, layer.stride, layer.padding, layer.dilation, bfloat16)
            yield x, dy, layer.values.detach(), layer.bias.detach(), index, geometry


def linear_samples():
    for layer, x in [
        (linear(), torch.randn(5, 12)),
        (linear(), torch.randn(12, 5).t()),
        (linear(), torch.randn(2, 3, 12)),
        (linear(), torch.randn(3, 2, 12).transpose(0, 1)),
        (linear(rows=4), torch.randn(12)),
        (linear(), torch.randn(0, 12)),
    ]:
        index, shape, _, tiling = parts(layer)
        dy = torch.randn_like(layer(x))
        for bfloat16 in PRECISIONS:
            geometry = (shape, tiling, bfloat16)
            yield x, dy, layer.values.detach(), layer.bias.detach(), index, geometry


def check_operators(samples, forward, input_gradient, weight_gradient):
    def wanted(tensor):
        return tensor.clone(memory_format=torch.preserve_format).requires_grad_()

    for x, dy, values, bias, index, layer in samples:
        for activation in ("none", "gelu"):
            opcheck(forward, (x, values, *index, *layer, bias, dy, activation))
        opcheck(
            forward, (wanted(x), wanted(values), *index, *layer, wanted(bias), wanted(dy), "none")
        )
        opcheck(input_gradient, (wanted(dy), wanted(values), *index, x, *layer))
        opcheck(weight_gradient, (wanted(x), wanted(dy), *index, *layer))


def test_operators_of_convolutions():
    check_operators(
        convolution_samples(), ops.conv2d, ops.conv2d_input_gradient, ops.conv2d_weight_gradient
    )


def test_operators_of_linear_layers():
    check_operators(
        linear_samples(), ops.linear, ops.linear_input_gradient, ops.linear_weight_gradient
    )


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "grouped"])
def test_gradients_of_any_order(kind, rows):
    torch.manual_seed(1)
    if kind == "linear":
        layer, x = linear(6, 8, rows), torch.randn(3, 6)

        def call(x, values, bias, residual):
            return kernels.sparse_linear(x, values, layer.index, bias, residual=residual)
    else:
        groups = 2 if kind == "grouped" else 1
        layer, x = convolution(groups, rows, stride=2, padding=1), torch.randn(2, 8, 4, 3)

        def call(x, values, bias, residual):
            return kernels.sparse_conv2d(
                x, values, layer.index, bias, stride=(2, 2), padding=(1, 1), residual=residual
            )

    inputs = (x, layer.values.detach(), layer.bias.detach(), torch.randn_like(layer(x)))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert gradcheck(call, inputs)
    # The sum of squares gives the second derivatives something to be.
    assert gradgradcheck(lambda *i: call(*i).square().sum(), inputs)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = convolution(stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = linear(16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def gradients(model, net, x):
    net.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


def test_compiled():
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for count in (4, 6):
        x = torch.randn(count, 8, 9, 9)
        torch.testing.assert_close(gradients(compiled, net, x), gradients(net, net, x))
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("trained", [False, True])
def test_exported(trained, tmp_path):
    net = Net().eval()
    x = torch.randn(4, 8, 9, 9)
    batch = {"x": {0: torch.export.Dim("batch")}}
    with torch.set_grad_enabled(trained):
        program = torch.export.export(net, (x,), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    assert "isoflop.sparse_conv2d" in loaded.graph_module.code
    for count in (4, 7):
        x = torch.randn(count, 8, 9, 9)
        torch.testing.assert_close(loaded.module()(x), net(x))


def test_gradients_lie_as_what_they_belong_to():
    layer = convolution(padding=1)
    for x in (torch.randn(3, 8, 5, 5), batch_innermost(torch.randn(3, 8, 5, 5))):
        x.requires_grad_()
        (dx,) = torch.autograd.grad(layer(x).sum(), x)
        assert dx.stride() == x.stride()


def test_only_gradients_that_are_needed_are_computed():
    layer = convolution()
    layer.requires_grad_(False)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    with torch.profiler.profile() as profile:
        layer(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "isoflop::sparse_conv2d_input_gradient" in names
    assert "isoflop::sparse_conv2d_weight_gradient" not in names


def test_fused_activations_are_for_inference():
    layer = convolution()
    x = torch.randn(2, 8, 5, 5)
    index, *numbers = parts(layer)
    y = ops.conv2d(
        x, layer.values, *index, *numbers, (1, 1), (0, 0), (1, 1), False, layer.bias, None, "relu"
    )
    with pytest.raises(KernelError, match="fused activation has no gradient"):
        y.sum().backward()
    y = kernels.sparse_conv2d(x, layer.values, layer.index, layer.bias, activation="relu")
    y.sum().backward()
    assert layer.values.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_computed_without_kernels(dtype):
    layer = convolution().to(dtype)
    x = torch.randn(2, 8, 5, 5, dtype=dtype)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_shapes_on_the_meta_device():
    layer = convolution(stride=2).to("meta")
    y = layer(torch.empty(3, 8, 9, 9, device="meta"))
    assert y.shape == (3, 16, 4, 4)
    assert y.permute(1, 2, 3, 0).is_contiguous()
    assert linear().to("meta")(torch.empty(2, 3, 12, device="meta")).shape == (2, 3, 8)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(2, 7, 5, 5), "takes"),
        (torch.randn(7, 5, 5), "takes"),
        (torch.randn(5, 5), "takes"),
        (torch.randn(2, 8, 2, 5), "does not fit"),
    ],
)
def test_wrong_inputs_of_convolutions(x, message):
    with pytest.raises(KernelError, match=message):
        convolution()(x)


def test_wrong_inputs_of_linear_layers():
    with pytest.raises(KernelError, match="takes"):
        linear()(torch.randn(2, 11))


def test_wrong_arguments():
    layer = linear()
    x = torch.randn(2, 12)
    with pytest.raises(KernelError, match="values has 3 numbers, not"):
        kernels.sparse_linear(x, torch.randn(3), layer.index)
    with pytest.raises(KernelError, match="bias has 3 numbers, not 8"):
        kernels.sparse_linear(x, layer.values, layer.index, torch.randn(3))
    with pytest.raises(KernelError, match="residual"):
        kernels.sparse_linear(x, layer.values, layer.index, residual=torch.randn(2, 9))
    with pytest.raises(KernelError, match="tanh"):
        kernels.sparse_linear(x, layer.values, layer.index, activation="tanh")


@pytest.mark.parametrize("batch", [1, 16])
def test_kernels_too_large_to_be_packed(batch):
    layer = nn.Conv2d(1, 4, 70, padding=1, bias=False)
    mask = torch.rand_like(layer.weight) < 0.3
    with torch.no_grad():
        layer.weight *= mask
    sparse = SparseConv2d.from_dense(layer, mask)
    x = torch.randn(batch, 1, 72, 73, requires_grad=True)
    y, expected = sparse(x), layer(x)
    dy = torch.randn_like(expected)
    dx, dv = torch.autograd.grad(y, (x, sparse.values), dy)
    expected_dx, dw = torch.autograd.grad(expected, (x, layer.weight), dy)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dv, sparse.gather(dw), rtol=1e-3, atol=1e-4)
