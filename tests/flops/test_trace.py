"""What `isoflop.profile` sees in the habits of real code, against counts by hand."""

import collections
import dataclasses
import functools
import threading
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

import isoflop
from isoflop.errors import BudgetError, InputError, IsoflopError, UncountedOperationWarning
from isoflop.masks import set_mask

WIDE = isoflop.SparseWide(sparsity=0.75)


class Model(nn.Module):
    """Layers and parameters by name, and a forward pass."""

    def __init__(self, forward: Any, **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def linear(inputs: int = 8, outputs: int = 8, nnz: int | None = None) -> Any:
    """A layer without a bias, of which `nnz` weights are left."""
    layer = nn.Linear(inputs, outputs, bias=False)
    if nnz is not None:
        mask = torch.zeros(layer.weight.numel(), dtype=torch.bool)
        mask[:nnz] = True
        set_mask(layer, "weight", mask.view_as(layer.weight))
    return layer


# ---- operations of unknown cost

torch.library.define("isoflop_tests::product", "(Tensor a, Tensor b) -> Tensor")
torch.library.impl("isoflop_tests::product", "CompositeExplicitAutograd", lambda a, b: a @ b)
torch.library.register_fake(
    "isoflop_tests::product", lambda a, b: a.new_empty(a.shape[0], b.shape[1])
)

UNKNOWN = {
    "a custom operator": lambda x, w: torch.ops.isoflop_tests.product(x, w),
    "a sparse product": lambda x, w: torch.sparse.mm(torch.eye(5).to_sparse(), x),
    "a matrix exponential": lambda x, w: torch.linalg.matrix_exp(x[:, :5]),
    "singular values": lambda x, w: x * torch.linalg.svdvals(x).sum(),
}


@pytest.mark.parametrize("name", [n for n in UNKNOWN if n != "a sparse product"])
def test_operations_of_unknown_cost_are_named_and_not_transformed(name):
    model = Model(
        lambda self, x: self.head(self.b(F.relu(UNKNOWN[name](self.a(x), self.w)[:, :5]))),
        a=nn.Linear(8, 8), w=nn.Parameter(torch.randn(8, 8)), b=nn.Linear(5, 8), head=nn.Linear(8, 2),
    )  # fmt: skip
    with pytest.warns(UncountedOperationWarning, match="not known"):
        table = isoflop.profile(model, (5, 8))
    assert table.uncounted
    with pytest.raises(BudgetError, match="not known"):
        isoflop.transform(model, WIDE, example_inputs=(5, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BudgetError, match="not known"):
        isoflop.sparsify(
            model,
            optimizer,
            "static",
            isoflop.plain_plan(model, 0.5, example_inputs=(5, 8)),
            total_steps=2,
        )


def test_deformable_convolutions():
    deformable = torchvision.ops.DeformConv2d(8, 8, 3, padding=1)
    model = Model(
        lambda self, x: self.head(self.deformable(x, self.offset(x))),
        offset=nn.Conv2d(8, 18, 1), deformable=deformable, head=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    assert isoflop.profile(model, (1, 8, 4, 4)).macs == 11_776


PRODUCTS = {
    "distances": (lambda self, x: torch.cdist(x, self.w), 5 * 8 * 8),
    "outer": (lambda self, x: torch.outer(x[0], x[1]), 0),
    "powers": (lambda self, x: torch.linalg.matrix_power(x @ x.T, 3), 200 + 2 * 125),
    "chain": (lambda self, x: torch.linalg.multi_dot([x, self.w, self.w]), 2 * 5 * 64),
    "tensordot": (lambda self, x: torch.tensordot(x, self.w, 1), 5 * 64),
    "of three": (lambda self, x: torch.einsum("bi,ij,bj->b", x, self.w, x), 5 * 64 + 5 * 8),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    run, macs = PRODUCTS[name]
    model = Model(run, w=nn.Parameter(torch.randn(8, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isoflop.profile(model, (5, 8)).macs == macs


# ---- masks that reach the product by other ways

MASKED = {
    "joined": (
        lambda self, x: F.linear(x, torch.cat([self.q.weight, self.k.weight])),
        5 * (16 + 24),
    ),
    "stacked": (
        lambda self, x: torch.einsum("bi,eoi->beo", x, torch.stack([self.q.weight, self.k.weight])),
        5 * (16 + 24),
    ),
    "sliced": (lambda self, x: F.linear(x[:, :4], self.q.weight[:, :4]), 5 * 8),
    "rows": (lambda self, x: F.linear(x, self.q.weight[:1]), 5 * 8),
    "chunks": (lambda self, x: F.linear(x, self.k.weight.chunk(4)[1]), 5 * 8),
    "transposed": (lambda self, x: x @ self.q.weight, 5 * 16),
    "scaled": (lambda self, x: F.linear(x, self.q.weight * self.gain), 5 * 16),
    "in a batch": (
        lambda self, x: torch.bmm(x[None].expand(3, -1, -1), self.q.weight.expand(3, 8, 8)),
        3 * 5 * 16,
    ),
    "permuted": (lambda self, x: F.linear(x, self.q.weight[self.order]), 5 * 16),
    "chosen": (lambda self, x: F.linear(x, self.q.weight[self.order[:7]]), 5 * 8),
    "summed": (lambda self, x: F.linear(x, self.q.weight + self.k.weight), 5 * 24),
    "in another type": (lambda self, x: x.double() @ self.q.weight.double().t(), 5 * 16),
    "of a learned input": (lambda self, x: self.q(self.query.expand(len(x), 8)) + x, 5 * 16),
    "recomputed": (lambda self, x: F.linear(x, self.q.weight - self.q.weight.mean()), 5 * 64),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_are_followed_to_the_product(name):
    run, macs = MASKED[name]
    model = Model(
        run, q=linear(nnz=16), k=linear(nnz=24), gain=nn.Parameter(torch.ones(8, 1)),
        query=nn.Parameter(torch.randn(1, 8)), order=torch.arange(7, -1, -1),
    )  # fmt: skip
    assert isoflop.profile(model, (5, 8)).macs == macs


def test_a_layer_on_a_learned_input_is_planned():
    model = Model(
        lambda self, x: self.head(
            F.relu(self.b(F.relu(self.q(self.query.expand(len(x), 8)) * self.a(x))))
        ),
        a=linear(8, 16), q=linear(8, 16), query=nn.Parameter(torch.randn(1, 8)), b=linear(16, 16),
        head=linear(16, 3),
    )  # fmt: skip
    _, plan = isoflop.transform(model, isoflop.SparseParallel(0.5), example_inputs=(5, 8))
    assert {layer.source for layer in plan.sparse_layers} == {"q", "b"}


# ---- what goes in and comes out


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclasses.dataclass(frozen=True)
class Record:
    value: Any


class Pair(NamedTuple):
    value: Any
    number: int = 1


CONTAINERS = {
    "plain": Plain,
    "slots": Slots,
    "record": Record,
    "named tuple": Pair,
    "user dict": lambda value: collections.UserDict(value=value),
    "nested": lambda value: Plain([Record({"value": (value, "text")})]),
    "list": lambda value: [value],
}


def head(self: Any, x: Tensor) -> Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x)))))


@pytest.mark.parametrize("name", CONTAINERS)
def test_outputs_of_any_class_keep_their_sizes(name):
    model = Model(
        lambda self, x: CONTAINERS[name](head(self, x)),
        a=nn.Linear(8, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 6),
    )  # fmt: skip
    wide: Any
    wide, plan = isoflop.transform(model, WIDE, example_inputs=(2, 8))
    assert wide.c.out_features == 6
    assert [layer.parameter for layer in plan.sparse_layers] == ["b.weight"]


def value_of(batch: Any) -> Tensor:
    while not isinstance(batch, Tensor):
        if isinstance(batch, (collections.UserDict, dict)):
            batch = batch["value"]
        elif isinstance(batch, (list, tuple)):
            batch = batch[0]
        else:
            batch = batch.value
    return batch


@pytest.mark.parametrize("name", CONTAINERS)
def test_inputs_of_any_class_are_seen(name):
    model = Model(
        lambda self, batch: head(self, value_of(batch)),
        a=nn.Linear(8, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 6),
    )  # fmt: skip
    x = torch.randn(2, 8)
    batch = CONTAINERS[name](x)
    wide: Any
    wide, plan = isoflop.transform(model, WIDE, example_inputs=(batch,))
    assert value_of(batch) is x
    assert wide.a.in_features == 8
    assert [layer.parameter for layer in plan.sparse_layers] == ["b.weight"]


def test_models_without_tensors_are_refused():
    nothing = Model(lambda self, x: None, a=nn.Linear(8, 8))
    with pytest.raises(InputError, match="no tensor"):
        isoflop.profile(nothing, (2, 8))
    number = Model(lambda self, n: self.a.weight * n, a=nn.Linear(8, 8))
    with pytest.raises(InputError, match=r"[Nn]o tensor"):
        isoflop.profile(number, {"n": 3})


def test_several_shapes():
    model = Model(lambda self, x, y: (self.a(x).sum(1), self.a(y).sum(1)), a=linear())
    assert isoflop.profile(model, ((4, 12, 8), (4, 9, 8))).macs == 64 * 4 * 21
    assert isoflop.profile(model, [(4, 12, 8), [4, 9, 8]]).macs == 64 * 4 * 21


# ---- what modules hold


def chain(self: Any, x: Tensor) -> Tensor:
    return self.middle(self.a(x))


def through_default() -> Any:
    model: Any = Model(chain, a=linear(nnz=32), b=linear(nnz=32))
    model.middle = lambda x, layer=model.b: layer(x)
    return model


def through_closure() -> Any:
    model: Any = Model(chain, a=linear(nnz=32), b=linear(nnz=32))
    model.middle = lambda x: model.b(x)
    return model


def through_layer() -> Any:
    model: Any = Model(chain, a=linear(nnz=32), b=linear(nnz=32))
    layer = model.b
    model.middle = {"b": [lambda x: layer(x)]}["b"][0]
    return model


def through_partial() -> Any:
    model: Any = Model(chain, a=linear(nnz=32), b=linear(nnz=32))
    model.middle = functools.partial(lambda layer, x: layer(x), model.b)
    return model


def through_method() -> Any:
    model: Any = Model(chain, a=linear(nnz=32), b=linear(nnz=32))
    model.middle = model.b.forward
    return model


WAYS = [through_default, through_closure, through_layer, through_partial, through_method]


@pytest.mark.parametrize("make", WAYS)
def test_layers_behind_functions(make):
    model = make()
    assert isoflop.profile(model, (4, 8)).macs == 4 * 64
    x = torch.randn(4, 8)
    expected = model(x)
    frozen = isoflop.freeze(model, example_inputs=x)
    with torch.no_grad():
        model.b.weight.zero_()
    torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_copied_is_named_where_a_copy_is_needed():
    model: Any = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    model[1].lock = threading.Lock()
    assert isoflop.profile(model, (4, 16)).macs == 4 * 4 * 256
    with pytest.raises(IsoflopError, match=r"'1\.lock'.*lock"):
        isoflop.transform(model, isoflop.SparseWide(0.5), example_inputs=(4, 16))


SEEN: list[Any] = []


def test_hooks_note_nothing_of_a_trace():
    seen: list[Any] = []
    layer: Any = nn.Linear(8, 8)
    layer.seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    layer.register_forward_hook(lambda module, args, output: SEEN.append(output))
    layer.register_forward_pre_hook(lambda module, args: layer.seen.append(args))
    hooks = dict(layer._forward_hooks)
    isoflop.profile(nn.Sequential(layer), (4, 8))
    assert seen == SEEN == layer.seen == []
    assert layer._forward_hooks == hooks


def test_hooks_that_change_what_a_layer_returns_count():
    layer = linear(8, 8)
    layer.register_forward_hook(lambda module, args, output: output[:, :4])
    assert isoflop.profile(nn.Sequential(layer, linear(4, 8)), (4, 8)).macs == 4 * (64 + 32)


def test_gradients_within_the_forward_pass_count():
    def forces(self, x):
        x = x.requires_grad_()
        (force,) = torch.autograd.grad(self.b(torch.tanh(self.a(x))).sum(), x)
        return force

    model = Model(forces, a=linear(8, 8), b=linear(8, 1))
    assert isoflop.profile(model, (4, 8)).macs == 2 * 4 * (64 + 8)


# ---- models that are refused by name


def test_names_programs_and_compiled_models():
    with pytest.raises(IsoflopError, match=r"build_model\('timm:resnet18'\)"):
        isoflop.profile("timm:resnet18", (1, 3, 64, 64))  # type: ignore[arg-type]


def test_sizes_that_depend_on_values_are_named_with_what_works():
    model = torchvision.models.get_model(
        "fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None
    )
    with pytest.raises(InputError, match=r"nonzero.*model\.backbone"):
        isoflop.profile(model, ([torch.empty(3, 64, 64, device="meta")],))


def test_a_causal_mask():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    inputs = {"src": torch.randn(2, 6, 16), "tgt": torch.randn(2, 6, 16)}
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    plain, masked = (
        isoflop.profile(model, inputs),
        isoflop.profile(model, inputs | {"tgt_mask": mask}),
    )
    assert plain.macs == masked.macs > 0


def test_pruned_weights_are_counted_by_their_parameter():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    prune.l1_unstructured(model[0], "weight", 0.5)
    assert isoflop.profile(model, (4, 8)).by_parameter() == {"0.weight_orig": 4 * 64}
