"""What an operation costs, and that none whose cost is unknown goes unsaid."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

import isoflop
from isoflop.errors import BudgetError, UncountedOperationWarning
from isoflop.flops.operations import kind_of
from isoflop.flops.trace import profile


class Run(nn.Module):
    """A function between two layers."""

    def __init__(self, function, *shapes, width=8):
        super().__init__()
        self.stem, self.head = nn.Linear(width, width), nn.Linear(width, width)
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x):
        return self.head(self.function(self.stem(x), *self.weights))


LAYERS = 2 * 5 * 64
"""MACs of the two layers on five rows."""

PRODUCTS = {
    "in place": (lambda x, w: torch.zeros(5, 8).addmm_(x, w), [(8, 8)], 5 * 64),
    "into another": (lambda x, w: torch.mm(x, w, out=torch.empty(5, 8)), [(8, 8)], 5 * 64),
    "several": (lambda x, v, w: torch.linalg.multi_dot([x, v, w]), [(8, 8)] * 2, 2 * 5 * 64),
    "power": (lambda x, w: x @ torch.linalg.matrix_power(w, 2), [(8, 8)], 8 * 64 + 5 * 64),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=1), [(8, 8)], 5 * 64),
    "batched and added": (
        lambda x, w: torch.baddbmm(x[None], x[None], w[None])[0],
        [(8, 8)],
        5 * 64,
    ),
    "one for each row": (
        lambda x, w: torch.func.vmap(lambda row: w @ row)(x),
        [(8, 8)],
        5 * 64,
    ),
    "distances": (lambda x, w: torch.cdist(x, w), [(8, 8)], 5 * 8 * 8),
    "fourier": (lambda x: torch.fft.fft(x + 0j).real, [], 5 * 2 * 8 * 3),
    "real fourier": (lambda x: torch.fft.irfft(torch.fft.rfft(x), n=8), [], 2 * 5 * 8 * 3),
    "triangular": (
        lambda x, w: torch.linalg.solve_triangular(w, x.t(), upper=False).t(),
        [(8, 8)],
        5 * 32,
    ),
    "solve": (
        lambda x, w: torch.linalg.solve(w, x.t()).t(),
        [(8, 8)],
        sum(k * k for k in range(8)) + 5 * 56,
    ),
    "bag": (
        lambda x, w: (
            x
            + F.embedding_bag(
                torch.zeros(5, 3, dtype=torch.long),
                w,
                mode="sum",
                per_sample_weights=torch.ones(5, 3),
            )
        ),
        [(9, 8)],
        5 * 3 * 8,
    ),
    "sums of rows": (
        lambda x, w: x + F.embedding_bag(torch.zeros(5, 3, dtype=torch.long), w),
        [(9, 8)],
        0,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    function, shapes, macs = PRODUCTS[name]
    assert profile(Run(function, *shapes), (5, 8)).macs == LAYERS + macs


ELEMENTWISE = {
    "cumulative": lambda x: x.cumsum(0).cumprod(1).logcumsumexp(0).cummax(0).values,
    "reductions": lambda x: x + x.mean() + x.std() + x.norm() + x.amax(0) + x.prod() + x.median(),
    "sorting": lambda x: x.sort().values + x.topk(8).values + x.kthvalue(2).values[:, None],
    "scatter": lambda x: x.scatter_add(0, torch.zeros(5, 8, dtype=torch.long), x).index_add(
        0, torch.zeros(5, dtype=torch.long), x
    ),
    "pooling": lambda x: F.avg_pool1d(x, 3, 1, 1) + F.max_pool1d(x, 3, 1, 1),
    "sampling": lambda x: F.grid_sample(
        x[None, None], torch.zeros(1, 5, 8, 2), align_corners=False
    )[0, 0],
    "resizing": lambda x: (
        F.interpolate(x[None], scale_factor=2)[0, :, ::2]
        + F.interpolate(x[None], size=8, mode="linear")[0]
    ),
    "norms": lambda x: F.layer_norm(F.rms_norm(x, (8,)), (8,)) + F.group_norm(x, 2),
    "random": lambda x: x + torch.rand_like(x) + torch.bernoulli(x.sigmoid()) + torch.randn(5, 8),
    "padding": lambda x: F.pad(x, (1, 1), mode="reflect")[:, 1:-1] + x.roll(1).flip(0),
    "complex": lambda x: torch.view_as_real(torch.polar(x, x) * torch.complex(x, x))[..., 0],
    "regions": lambda x: (
        x
        + torchvision.ops.roi_align(
            x[None, None], [torch.tensor([[0.0, 0.0, 2.0, 2.0]])], output_size=1
        ).flatten()
    ),
    "softmaxes": lambda x: x.softmax(1) + x.log_softmax(0) + F.glu(torch.cat([x, x], 1)),
    "losses": lambda x: x + F.mse_loss(x, x) + F.cross_entropy(x, torch.zeros(5, dtype=torch.long)),
    "windows": lambda x: x.unfold(1, 2, 1).sum(-1).sum() + x + torch.hann_window(8),
    "quantised by simulation": lambda x: torch.fake_quantize_per_tensor_affine(
        x, 0.1, 0, -128, 127
    ),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_is_no_product(name):
    # Warnings are errors here.
    assert profile(Run(ELEMENTWISE[name]), (5, 8)).macs == LAYERS


UNKNOWN = {
    "linalg_qr": lambda x: torch.linalg.qr(x)[0] @ torch.ones(5, 8),
    "linalg_matrix_exp": lambda x: x @ torch.linalg.matrix_exp(torch.zeros(8, 8)),
    "_linalg_svd": lambda x: x + torch.linalg.svdvals(x).sum(),
    "_linalg_eigh": lambda x: x @ torch.linalg.eigh(x.t() @ x).eigenvectors,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_of_unknown_cost_is_named(name):
    model = Run(UNKNOWN[name])
    with pytest.warns(
        UncountedOperationWarning, match=f"not known.*{name} in the model.*register_flop_f"
    ):
        table = profile(model, (5, 8))
    assert table.uncounted == (f"aten.{name} in the model",)
    assert f"not counted: aten.{name} in the model" in str(table)
    assert table.to_dict()["uncounted"] == [f"aten.{name} in the model"]


_SUSPECT = ("mm", "matmul", "conv", "linear", "attention", "solve", "einsum", "lstm", "gru", "rnn")
_HARMLESS = (
    "upsample",
    "cell",
    "gamma",
    "hamming",
    "cumm",
    "comm",
    "convert",
    "linalg_cross",
    "conj",
    "trilinear_b",
)


def test_no_product_of_pytorch_is_taken_for_elementwise_work():
    taken = set()
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if namespace != "aten" or not any(part in name for part in _SUSPECT):
            continue
        operation = getattr(getattr(torch.ops.aten, name), overload or "default", None)
        if operation is not None and kind_of(operation) in ("elementwise", "move"):
            taken.add(name)
    assert not [name for name in taken if not any(part in name for part in _HARMLESS)]


class Deformable(nn.Module):
    def __init__(self, *, ends: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 1, bias=False) if ends else nn.Identity()
        self.offset = nn.Conv2d(8, 18, 1, bias=False)
        self.deform = torchvision.ops.DeformConv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1, bias=False)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.deform(x, self.offset(x)))


def test_deformable_convolutions_are_part_of_counts_and_plans():
    macs = 16 * (18 * 8 + 8 * 72 + 2 * 8)
    assert profile(Deformable(ends=False), (1, 8, 4, 4)).macs == macs == 11_776
    model, plan = isoflop.transform(
        Deformable(ends=True),
        isoflop.SparseWide(0.5, exclude=("offset",)),
        example_inputs=(1, 8, 4, 4),
    )
    assert plan.macs == plan.dense_macs == macs + 16 * 64
    sparse = {layer.parameter: layer.shape for layer in plan.sparse_layers}
    assert sparse == {"deform.weight": (11, 11, 3, 3)}
    model(torch.zeros(1, 8, 4, 4))
    # Offsets are coordinates: their number stays.
    assert tuple(model.get_parameter("offset.weight").shape) == (18, 11, 1, 1)


@pytest.fixture
def library():
    with torch.library._scoped_library("isoflop_test", "FRAGMENT") as found:
        found.define("linear(Tensor x, Tensor w, Tensor b) -> Tensor")
        found.define("write(Tensor x, Tensor w, Tensor(a!) out) -> ()")
        found.impl("linear", lambda x, w, b: F.linear(x, w, b), "CPU")
        found.impl("linear", lambda x, w, b: x.new_empty(x.shape[0], w.shape[0]), "Meta")
        found.impl("write", lambda x, w, out: None, "CPU")
        found.impl("write", lambda x, w, out: None, "Meta")
        yield torch.ops.isoflop_test


def _writing(x, w):
    out = torch.empty(5, 8)
    torch.ops.isoflop_test.write(x, w, out)
    return out


@pytest.mark.parametrize("name", ["linear", "write"])
def test_operators_of_other_libraries_warn_and_are_refused(library, name):
    run: Any = _writing if name == "write" else lambda x, w: library.linear(x, w, w[0])
    model = Run(run, (8, 8))
    with pytest.warns(UncountedOperationWarning, match=f"isoflop_test.{name} in the model"):
        assert profile(model, (5, 8)).macs == LAYERS
    transforms = [t(0.5, dense_ends=False) for t in (isoflop.SparseWide, isoflop.SparseParallel)]
    for transform in transforms:
        with pytest.raises(BudgetError, match=f"isoflop_test.{name}.*register_flop_formula"):
            isoflop.transform(model, transform, example_inputs=(5, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BudgetError, match=f"isoflop_test.{name}"):
        isoflop.sparsify(
            model,
            optimizer,
            isoflop.RigL(),
            isoflop.plain_plan(model, 0.5, example_inputs=(5, 8), dense_ends=False),
            total_steps=10,
        )
    assert not list(model.buffers())


def test_an_operator_that_is_given_a_formula_is_counted(library):
    packet = library.linear
    register_flop_formula(packet)(lambda x, w, b, out_shape=None, **_: 2 * x[0] * w[0] * w[1])
    try:
        table = profile(Run(lambda x, w, b: library.linear(x, w, b), (8, 8), (8,)), (5, 8))
    finally:
        flop_registry.pop(packet)
    assert table.macs == LAYERS + 5 * 64
    # A vector is a bias.
    assert table.by_parameter()["weights.0"] == 5 * 64


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_matrices_count_by_what_they_store(layout, given):
    matrix = torch.eye(5)
    matrix[0, 1] = 1
    with warnings.catch_warnings(action="ignore"):
        matrix = matrix.to_sparse() if layout == "coo" else matrix.to_sparse_csr()

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)
            self.register_buffer("matrix", matrix)

        def forward(self, x, other=None):
            own = self.matrix if other is None else other
            return torch.sparse.mm(own, self.layer(x)) + own @ self.layer(x)

    inputs = (torch.zeros(5, 8), matrix) if given else (5, 8)
    assert profile(Graph(), inputs).macs == 2 * 5 * 24 + 2 * 6 * 3
