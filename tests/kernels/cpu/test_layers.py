import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isoflop.errors import KernelError
from isoflop.kernels import (
    SparseConv1D,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    compress,
    densify,
    densify_,
)

LAYERS = {
    "linear": lambda: (nn.Linear(12, 8), (3, 12)),
    "linear of sequences": lambda: (nn.Linear(12, 8, bias=False), (2, 5, 12)),
    "conv": lambda: (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 5, 6)),
    "conv, strided and dilated": lambda: (
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 2), dilation=2, bias=False),
        (2, 4, 7, 6),
    ),
    "grouped": lambda: (nn.Conv2d(4, 8, 3, padding="same", groups=2), (2, 4, 5, 5)),
    "depthwise": lambda: (nn.Conv2d(8, 8, 3, padding="valid", groups=8), (2, 8, 5, 5)),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def random_mask(shape, rows, seed=0, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(shape[0] // rows, *shape[1:], generator=generator) < density
    return blocks.repeat_interleave(rows, 0)


def pair(make, rows=1):
    """Return a dense layer with zeros, its mask and its compressed form, and an input."""
    torch.manual_seed(0)
    dense, shape = make()
    mask = random_mask(dense.weight.shape, rows)
    with torch.no_grad():
        dense.weight.mul_(mask)
    return dense, mask, compress(dense, mask, rows=rows), torch.randn(shape)


@layers
@pytest.mark.parametrize("rows", [1, 4])
def test_layers_compute_what_dense_ones_do(make, rows):
    if make is LAYERS["depthwise"] and rows == 4:
        with pytest.raises(KernelError, match="blocks of 4"):
            pair(make, rows)
        return
    dense, mask, sparse, x = pair(make, rows)
    assert torch.equal(sparse.mask(), mask)
    assert torch.equal(sparse.dense_weight(), dense.weight)
    assert sparse.nnz == int(mask.sum())
    assert sparse.dense_shape == dense.weight.shape
    outputs = []
    for layer in (dense, sparse):
        own = x.clone().requires_grad_()
        y = layer(own)
        grads = torch.autograd.grad(y.sin().sum(), [own, *layer.parameters()])
        outputs.append((y, *grads))
    (y, dx, dw, *db), (y2, dx2, dv, *db2) = outputs
    torch.testing.assert_close((y, dx, db), (y2, dx2, db2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.gather(dw), dv, rtol=1e-4, atol=1e-5)


@layers
def test_outputs_may_be_changed_in_place(make):
    _, _, sparse, x = pair(make)
    F.relu(sparse(x), inplace=True).sum().backward()
    plain = torch.autograd.grad(F.relu(sparse(x)).sum(), sparse.values)[0]
    assert sparse.values.grad is not None
    assert torch.equal(sparse.values.grad, plain)


@layers
def test_conversion_is_exact(make):
    dense, mask, sparse, x = pair(make)
    model = densify(nn.Sequential(sparse))
    assert torch.equal(model.get_parameter("0.weight"), dense.weight)
    assert torch.equal(model.get_buffer("0.weight_mask"), mask)
    assert torch.equal(model(x), dense(x))
    assert type(sparse) is not type(densify(sparse))
    assert densify_(sparse) is sparse  # the root itself
    assert sparse.get_parameter("weight").equal(dense.weight)


def test_layers_of_hugging_face_keep_their_shape():
    transformers = pytest.importorskip("transformers.pytorch_utils")
    dense = transformers.Conv1D(8, 12)
    mask = random_mask(dense.weight.shape, 1)
    with torch.no_grad():
        dense.weight.mul_(mask)
    sparse = compress(dense, mask)
    assert isinstance(sparse, SparseConv1D)
    assert torch.equal(sparse.dense_weight(), dense.weight)
    assert torch.equal(sparse.mask(), mask)
    assert torch.equal(sparse.scatter(sparse.gather(dense.weight)), dense.weight)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(sparse(x), dense(x))
    before = torch.get_rng_state()
    again = densify(sparse)
    assert type(again) is transformers.Conv1D
    assert torch.equal(again.get_parameter("weight"), dense.weight)
    assert torch.equal(again.get_buffer("weight_mask"), mask)
    torch.testing.assert_close(again(x), dense(x))
    assert torch.equal(torch.get_rng_state(), before)


@layers
def test_observers_see_the_dense_gradient(make):
    dense, _, sparse, x = pair(make)
    seen: list[torch.Tensor] = []
    sparse.observer = seen.append
    sparse(x)  # no backward pass, no gradient
    with torch.no_grad():
        assert not sparse(x).requires_grad
    assert seen == []
    # What comes next may change the output in place.
    F.relu(sparse(x), inplace=True).square().sum().backward()
    F.relu(dense(x)).square().sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], dense.weight.grad, rtol=1e-4, atol=1e-5)
    assert copy.deepcopy(sparse).observer is None


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 4]))
@settings(deadline=None, max_examples=40)
def test_rewiring_moves_everything_alike(seed, before, after, rows):
    layer, _ = LAYERS["conv"]()
    old = random_mask(layer.weight.shape, rows, seed, before)
    new = random_mask(layer.weight.shape, rows, seed + 1, after)
    sparse = compress(layer, old, rows=rows)
    parameter, kept = sparse.values, old & new
    weight = sparse.dense_weight()
    momentum = torch.randn(sparse.nnz)
    moment = sparse.scatter(momentum)
    sparse.values.grad = torch.randn(sparse.nnz)
    grad = sparse.scatter(sparse.values.grad)
    sparse.drop_and_grow(new, [momentum])
    sparse.index.check()
    assert sparse.values is parameter
    assert torch.equal(sparse.mask(), new)
    assert torch.equal(sparse.dense_weight(), weight * kept)
    assert torch.equal(sparse.scatter(momentum), moment * kept)
    assert torch.equal(sparse.scatter(sparse.values.grad), grad * kept)


def test_rewiring_keeps_the_buffers_while_their_sizes_stay():
    sparse = compress(nn.Linear(8, 8), torch.eye(8, dtype=torch.bool))
    buffers = [id(buffer) for buffer in sparse.buffers()]
    sparse.drop_and_grow(torch.eye(8, dtype=torch.bool).flip(0))
    assert [id(buffer) for buffer in sparse.buffers()] == buffers


def test_old_graphs_do_not_hinder_other_lengths():
    sparse = compress(nn.Linear(8, 8), torch.ones(8, 8, dtype=torch.bool))
    graphs = []
    for k in range(1, 5):
        graphs.append(sparse(torch.randn(2, 8)).sum())
        graphs[-1].backward()
        sparse.values.grad = None
        sparse.drop_and_grow(torch.ones(8, 8).tril(k % 3).bool())
    graphs.append(sparse(torch.randn(2, 8)).sum())
    graphs[-1].backward()
    assert sparse.values.grad is not None
    assert len(sparse.values.grad) == sparse.nnz


@layers
def test_state_dicts_of_other_masks_load(make, tmp_path):
    _, mask, sparse, x = pair(make)
    torch.save(sparse.state_dict(), tmp_path / "layer.pt")
    for other in (~mask, torch.ones_like(mask), torch.zeros_like(mask)):
        fresh = compress(make()[0], other)
        graph = fresh(x).sum()
        graph.backward()
        parameter = fresh.values
        parameter.grad = None
        fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        assert fresh.values is parameter
        assert torch.equal(fresh(x), sparse(x))
        fresh(x).sum().backward()


def test_damaged_states_are_refused():
    sparse = compress(nn.Linear(8, 8), torch.eye(8, dtype=torch.bool))
    state = sparse.state_dict()
    with pytest.raises(KernelError, match="7 values and 8 positions"):
        copy.deepcopy(sparse).load_state_dict({**state, "values": state["values"][:7]})
    starts = state["starts"].clone()
    starts[3] = 100
    with pytest.raises(KernelError, match="damaged"):
        copy.deepcopy(sparse).load_state_dict({**state, "starts": starts})


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 1),
        nn.ConvTranspose2d(4, 4, 1),
        nn.Bilinear(4, 4, 4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, padding="same"),
    ],
)
def test_other_layers_are_refused(layer):
    with pytest.raises(KernelError):
        compress(layer, torch.ones_like(layer.weight, dtype=torch.bool))


def test_copies_and_pickles_are_whole(tmp_path):
    for make, kind in itertools.product(LAYERS.values(), (copy.deepcopy, "pickle")):
        _, mask, sparse, x = pair(make)
        if kind == "pickle":
            torch.save(sparse, tmp_path / "layer.pt")
            other = torch.load(tmp_path / "layer.pt", weights_only=False)
        else:
            other = copy.deepcopy(sparse)
        assert isinstance(other, SparseLinear | SparseConv2d)
        assert isinstance(other, SparseLayer)
        expected = sparse(x)
        sparse.drop_and_grow(~mask)
        assert torch.equal(other(x), expected)
        assert torch.equal(other.mask(), mask)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_that_share_their_inputs(density, stride):
    # So many pixels that outputs are computed by twos; the last has no partner.
    torch.manual_seed(0)
    conv = nn.Conv2d(7, 5, 3, stride=stride, padding=1)
    mask = torch.rand_like(conv.weight) < density
    conv.weight.data *= mask
    sparse = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(32, 7, 16, 16, requires_grad=True)
    y, expected = sparse(x), conv(x)
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    (dx,), (expected_dx,) = (torch.autograd.grad(out, x, dy) for out in (y, expected))
    torch.testing.assert_close(dx, expected_dx, rtol=1e-4, atol=1e-5)


INDEX = ["offsets", "starts", "t_entries", "t_starts"]


def scattered():
    """A compressed layer and one like it with other positions."""
    torch.manual_seed(0)
    one, two = (compress(nn.Linear(32, 32), torch.rand(32, 32).argsort(1) < 8) for _ in range(2))
    assert not one.index.equal(two.index)
    return one, two


@pytest.mark.parametrize("name", INDEX)
def test_no_kernel_sees_an_index_that_was_changed(name):
    layer, _ = scattered()
    x = torch.randn(2, 32)
    layer(x)
    layer.state_dict()[name].fill_(100)  # a copy
    layer(x)
    getattr(layer, name).add_(1000)
    with pytest.raises(KernelError, match="damaged"):
        layer(x)
    with pytest.raises(KernelError, match="damaged"):
        layer.dense_weight()
    with pytest.raises(KernelError, match="damaged"):
        torch.compile(layer, backend="aot_eager")(x)


def test_the_index_moves_with_the_layer_and_is_never_cast():
    layer, _ = scattered()
    x, index = torch.randn(2, 32), layer.index
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for moved in (copy.deepcopy(layer).to(dtype), copy.deepcopy(layer).type(dtype)):
            assert moved.index.equal(index)
            assert moved(x.to(dtype)).dtype == dtype
    assert copy.deepcopy(layer).to("meta").offsets.is_meta
    empty = copy.deepcopy(layer).to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))
    assert [name for name, _ in layer.named_buffers()] == ["signature"]


@torch.no_grad()
def test_values_of_other_positions_are_noticed():
    layer, other = scattered()
    x = torch.randn(2, 32)
    for change in (lambda a, b: a.copy_(b), lambda a, b: a.lerp_(b, 1e-4), lambda a, b: a.add_(b)):
        mixed = copy.deepcopy(layer)
        for mine, theirs in zip(
            (*mixed.parameters(), *mixed.buffers()),
            (*other.parameters(), *other.buffers()),
            strict=True,
        ):
            change(mine, theirs)
        for use in (lambda m=mixed: m(x), mixed.dense_weight, mixed.to_dense, mixed.positions):
            with pytest.raises(KernelError, match="align_masks"):
                use()
        with pytest.raises(KernelError, match="do not belong together"):
            copy.deepcopy(layer).load_state_dict(mixed.state_dict())


def averaged(one, two):
    return {name: (one[name] + two[name]) / 2 for name in one}


BAD = {
    "averaged": averaged,
    "averaged floats": lambda one, two: {
        n: (v + two[n]) / 2 if v.is_floating_point() else v for n, v in one.items()
    },
    "other positions": lambda one, two: {**one, **{name: two[name] for name in INDEX}},
    "no positions": lambda one, two: {k: v for k, v in one.items() if k != "starts"},
    "no tiling": lambda one, two: {k: v for k, v in one.items() if k != "tiling"},
    "tiles of none": lambda one, two: {**one, "tiling": torch.zeros(3, dtype=torch.int32)},
    "too few": lambda one, two: {**one, "offsets": one["offsets"][:-1]},
    "beyond": lambda one, two: {**one, "t_entries": one["t_entries"] + 2**20},
    "other shape": lambda one, two: compress(nn.Linear(8, 8), torch.eye(8) > 0).state_dict(),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_states_leave_the_layer_as_it_was(bad):
    layer, other = scattered()
    layer.train(False)
    before, x = copy.deepcopy(layer.state_dict()), torch.randn(2, 32)
    y = layer(x)
    for strict in (True, False):
        with pytest.raises(KernelError):
            layer.load_state_dict(bad(layer.state_dict(), other.state_dict()), strict=strict)
        after = layer.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("name", ["values", "bias", "signature"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        [1.0],
        "text",
        torch.eye(4).to_sparse(),
        torch.ones(32, device="meta"),
        torch.ones(32) > 0,
    ],
    ids=["none", "list", "text", "sparse", "meta", "flags"],
)
@pytest.mark.parametrize("assign", [False, True])
def test_states_without_numbers_leave_the_layer_as_it_was(name, value, assign):
    if assign and isinstance(value, torch.Tensor) and value.is_meta:
        pytest.skip("what PyTorch is asked for")
    layer, other = scattered()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(KernelError):
        layer.load_state_dict({**other.state_dict(), name: value}, strict=False, assign=assign)
    assert all(torch.equal(before[key], state) for key, state in layer.state_dict().items())


def test_states_that_do_not_fit_are_reported_as_pytorch_does():
    layer, other = scattered()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        layer.load_state_dict({**other.state_dict(), "bias": torch.ones(3)})
    with pytest.raises(RuntimeError, match=r'Missing key.* "bias"'):
        layer.load_state_dict({k: v for k, v in other.state_dict().items() if k != "bias"})
    with pytest.raises(RuntimeError, match=r'Missing key.* "offsets"'):
        layer.load_state_dict({"bias": before["bias"]})
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    layer.load_state_dict({"bias": torch.ones(32)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(32))
    # Files of earlier versions have no signature.
    layer.load_state_dict({k: v for k, v in other.state_dict().items() if k != "signature"})
    assert torch.equal(layer.dense_weight(), other.dense_weight())
