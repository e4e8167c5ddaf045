"""The weight of a sparse layer, for code that reads or changes `layer.weight`."""

# Models here are told apart by what they do, not by their types.
# pyright: reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isoflop.errors import KernelError
from isoflop.kernels import compress
from isoflop.kernels.cpu.view import DenseView


def pair(kind="linear"):
    """Return a masked dense layer and its sparse form."""
    torch.manual_seed(0)
    if kind == "conv1d":
        dense = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 8)
    else:
        dense = nn.Linear(8, 6) if kind == "linear" else nn.Conv2d(2, 6, 2, padding=1)
    mask = torch.rand(dense.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        dense.weight.mul_(mask)
    return dense, compress(dense, mask), mask


KINDS = ["linear", "conv", "conv1d"]


@pytest.mark.parametrize("kind", KINDS)
def test_shape_type_and_device_make_no_dense_weight(kind, monkeypatch):
    dense, sparse, _ = pair(kind)
    monkeypatch.setattr(DenseView, "made", lambda _: pytest.fail("made"))
    weight, expected = sparse.weight, dense.weight
    assert isinstance(weight, torch.Tensor)
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "requires_grad",
        "is_leaf",
        "nbytes",
    ):
        assert getattr(weight, name) == getattr(expected, name)
    for name in ("size", "dim", "numel", "stride", "is_floating_point", "is_contiguous", "__len__"):
        assert getattr(weight, name)() == getattr(expected, name)()
    assert weight.grad is None
    assert weight.mT.shape == expected.mT.shape
    assert weight[0].shape == expected[0].shape
    assert weight.data.dtype == weight.detach().dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "use",
    [
        lambda w: w,
        lambda w: w * 2 + 1,
        lambda w: 1 - w,
        lambda w: w.t() if w.ndim == 2 else w.permute(1, 0, 2, 3),
        lambda w: w.flatten(1) @ w.flatten(1).T,
        lambda w: torch.cat([w[1:3], w[:2]]),
        lambda w: torch.stack(w.unbind()),
        lambda w: w.chunk(2)[1],
        lambda w: w.view(-1)[3:9],
        lambda w: w.norm(),
        lambda w: w.double(),
        lambda w: w[torch.tensor([0, 2])],
        lambda w: torch.where(w > 0, w, -w),
    ],
)
def test_any_use_is_that_of_the_dense_weight(kind, use):
    dense, sparse, mask = pair(kind)
    results = [use(layer.weight) for layer in (dense, sparse)]
    torch.testing.assert_close(results[1] + 0, results[0] + 0, rtol=0, atol=0)
    for result in results:
        (result.square().sum() + result.sum()).backward()
    assert dense.weight.grad is not None
    torch.testing.assert_close(sparse.weight.grad + 0, dense.weight.grad * mask)


CHANGES = {
    "fill_": lambda w: w.fill_(3),
    "row": lambda w: w[0].fill_(3),
    "column": lambda w: w[:, 1].mul_(5),
    "item": lambda w: w.__setitem__((slice(1, 3), 0), 7.0),
    "transposed": lambda w: w.transpose(0, 1)[1].add_(2),
    "flat": lambda w: w.view(-1).__setitem__(slice(5, 20), 9.0),
    "data": lambda w: w.data.mul_(2),
    "set data": lambda w: setattr(w, "data", w.detach() + 1),
    "detached": lambda w: w.detach().sub_(1),
    "rows": lambda w: [row.add_(i) for i, row in enumerate(w)],
    "chunks": lambda w: w.chunk(2)[1].zero_(),
    "operator": lambda w: w.__imul__(3).__iadd__(1),
    "out": lambda w: torch.add(w, 1, out=w),
    "list": lambda w: torch._foreach_mul_([w], 2.0),  # pyright: ignore[reportPrivateImportUsage]
    "copy_": lambda w: w.copy_(w.abs()),
    "xavier_uniform_": nn.init.xavier_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "orthogonal_": nn.init.orthogonal_,
    "trunc_normal_": nn.init.trunc_normal_,
    "constant_": lambda w: nn.init.constant_(w, 2.0),
    "ones_": nn.init.ones_,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place_reach_the_values_and_leave_the_zeros(kind, name):
    dense, sparse, mask = pair(kind)
    for layer in (dense, sparse):
        torch.manual_seed(1)
        with torch.no_grad():
            CHANGES[name](layer.weight)
    torch.testing.assert_close(sparse.dense_weight(), dense.weight.detach() * mask, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_initialisation_by_class(kind):
    dense, sparse, mask = pair(kind)
    for layer in (dense, sparse):
        torch.manual_seed(1)
        layer.reset_parameters()
    torch.testing.assert_close(sparse.dense_weight(), dense.weight.detach() * mask, rtol=0, atol=0)
    assert torch.equal(sparse.bias, dense.bias)
    assert isinstance(sparse, type(dense))


def test_a_trained_weight_is_not_changed_in_place_with_gradients():
    _, sparse, _ = pair()
    before = sparse.dense_weight()
    with pytest.raises(KernelError, match=r"add_ would change it .* `torch.no_grad\(\)`"):
        sparse.weight.add_(1)
    with pytest.raises(KernelError, match="__setitem__ would change it"):
        sparse.weight[0] = 1
    assert torch.equal(sparse.dense_weight(), before)


def test_gradients_are_a_view_too():
    _, sparse, mask = pair()
    sparse(torch.ones(1, 8)).sum().backward()
    assert torch.equal(sparse.weight.grad + 0, mask.float())
    nn.utils.clip_grad_norm_([sparse.weight], 0.5)
    torch.testing.assert_close(sparse.values.grad.norm(), torch.tensor(0.5))
    sparse.weight.grad = torch.full((6, 8), 2.0)
    assert torch.equal(sparse.values.grad, torch.full((sparse.nnz,), 2.0))
    sparse.weight.grad = None
    assert sparse.values.grad is None


def test_freezing_reaches_the_values():
    _, sparse, _ = pair()
    sparse.weight.requires_grad = False
    assert not sparse.values.requires_grad
    sparse.weight.requires_grad_()
    assert sparse.values.requires_grad
    dense, _, mask = pair()
    assert not compress(dense.requires_grad_(False), mask).values.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(6, 8))), "copy_"),
        (lambda layer: setattr(layer, "weight", torch.ones(6, 8)), "copy_"),
        (lambda layer: nn.Parameter(layer.weight), "detach"),
        (lambda layer: setattr(layer.weight, "data", torch.ones(3)), "shape"),
        (lambda layer: layer.weight.register_hook(print), "layer.values"),
        (lambda layer: layer.weight.retain_grad(), "layer.values"),
    ],
)
def test_what_could_not_last_is_refused(change, message):
    _, sparse, _ = pair()
    with pytest.raises(KernelError, match=message):
        change(sparse)


def test_copies_follow_the_copied_layer():
    _, sparse, _ = pair()
    layers = copy.deepcopy([sparse, sparse.weight])
    with torch.no_grad():
        layers[0].values.zero_()
    assert not layers[1].any()
    assert sparse.weight.any()
    assert torch.equal(pickle.loads(pickle.dumps(sparse.weight)), sparse.dense_weight())


def test_compiled_code_reads_it():
    _, sparse, _ = pair()
    compiled = torch.compile(
        lambda x: F.linear(x.to(sparse.weight.dtype), sparse.weight, sparse.bias),
        backend="aot_eager",
        fullgraph=True,
    )
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), sparse(x))
    compiled(x).sum().backward()
    assert sparse.values.grad.any()
