"""Training in compressed storage is training in masked storage, in less memory."""

import copy
import functools
import gc
import types
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.budgets import sparsify_arguments
from tests.methods.test_contract import COMPRESSIBLE, assert_same, build_method, calibration
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import isoflop
from isoflop.errors import IsoflopError, NoEffectWarning, OptimizerError, UnknownNameError
from isoflop.kernels import SparseConv1D, SparseConv2d, SparseLayer, SparseLinear
from isoflop.model_specs import build_model
from isoflop.sparsity import plain_plan
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.weights.compressed import CompressedStorage, CompressedTarget

STEPS = 12
SHAPE = (3, 4, 4)


def small_net():
    """Convolutions with and without groups, activations in place, linear layers.

    No ReLU: an output without weights is nothing but rounding errors after its norm, whose signs a
    ReLU would tell apart.
    """
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ELU(inplace=True),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=2, bias=False),
        nn.ELU(inplace=True),
        nn.Conv2d(8, 16, (1, 3), stride=2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ELU(inplace=True),
        nn.Linear(16, 4),
    )


class Shared(nn.Module):
    """One layer used twice in a forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(48, 48)
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        x = self.inner(x.flatten(1)).tanh()
        return self.head(self.inner(x).tanh())


class Run:
    def __init__(self, storage, method: Any = "rigl", make=small_net, adam=True, **options: Any):
        torch.manual_seed(0)
        self.model = make()
        self.optimizer = (
            # The large eps keeps Adam from making a step of full size of a mere rounding error.
            torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1, eps=1e-3)
            if adam
            else torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        )
        self.sparsifier = sparsify(
            self.model,
            self.optimizer,
            build_method(method) if isinstance(method, str) else method,
            storage=storage,
            **sparsify_arguments(
                self.model,
                **{
                    "sparsity": 0.6,
                    "dense_ends": False,
                    "total_steps": STEPS,
                    "example_inputs": (1, *SHAPE),
                    "batches": calibration(),
                    "loss": F.cross_entropy,
                    **options,
                },
            ),
        )

    def loss(self, step, rows=slice(None)):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, *SHAPE, generator=generator)
        y = torch.randint(4, (8,), generator=generator)
        return F.cross_entropy(self.model(x[rows]), y[rows])

    def step(self, step):
        # The graph of the last step stays alive during the next, as in ordinary loops.
        self.last = self.loss(step)
        self.optimizer.zero_grad()
        self.last.backward()
        self.optimizer.step()

    def weights(self):
        return {t.name: t.dense()[0] for t in self.sparsifier._targets}

    def momenta(self):
        found = {}
        for target in self.sparsifier._targets:
            compressed = isinstance(target, CompressedTarget)
            parameter = target.layer.values if compressed else self.model.get_parameter(target.name)
            for key, tensor in self.optimizer.state[parameter].items():
                if isinstance(tensor, torch.Tensor) and tensor.shape == parameter.shape:
                    whole = target.layer.scatter(tensor) if compressed else tensor
                    found[f"{target.name} {key}"] = whole
        return found


def layers_of(run) -> dict[str, SparseLayer]:
    """Return the compressed layers of a run, by the names of their weights."""
    targets = run.sparsifier._targets
    return {t.name: t.layer for t in targets if isinstance(t, CompressedTarget)}


def assert_alike(masked, compressed):
    """Assert that two runs have the same masks, and the same numbers up to rounding."""
    assert_same(masked.sparsifier.masks, compressed.sparsifier.masks)
    assert masked.sparsifier.nnz == compressed.sparsifier.nnz
    torch.testing.assert_close(masked.weights(), compressed.weights(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(masked.momenta(), compressed.momenta(), rtol=1e-3, atol=1e-5)


# The same as masked storage


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "8x2", "1x3"])
@pytest.mark.parametrize("name", [name.partition("/")[0] for name in COMPRESSIBLE])
def test_masks_are_those_of_masked_storage(name, pattern, adam):
    masked, compressed = (Run(s, name, adam=adam, pattern=pattern) for s in STORAGES)
    assert_alike(masked, compressed)
    for step in range(STEPS):
        masked.step(step)
        compressed.step(step)
        assert_alike(masked, compressed)
    assert masked.sparsifier.history == compressed.sparsifier.history
    assert masked.sparsifier.plan == compressed.sparsifier.plan
    assert masked.sparsifier.training_macs() == compressed.sparsifier.training_macs()


STORAGES = ("masked", "compressed")


@pytest.mark.parametrize("name", ["static", "set", "snip"])
def test_methods_without_dense_gradients_take_every_pattern(name):
    masked, compressed = (Run(s, name, pattern="2:4", sparsity=0.5) for s in STORAGES)
    for step in range(STEPS):
        masked.step(step)
        compressed.step(step)
        assert_alike(masked, compressed)


@pytest.mark.parametrize("every", [1, 2])
def test_layers_used_twice_grow_by_the_sum(every):
    method = isoflop.RigL(update_every=every, end_fraction=1.0)
    masked, compressed = (Run(s, method, Shared) for s in STORAGES)
    for step in range(STEPS):
        masked.step(step)
        compressed.step(step)
        assert_alike(masked, compressed)


def test_layers_of_hugging_face_are_alike():
    transformers = pytest.importorskip("transformers.pytorch_utils")

    def make():
        conv1d = transformers.Conv1D(20, 48)
        return nn.Sequential(nn.Flatten(), conv1d, nn.Tanh(), nn.Linear(20, 4))

    for pattern in ("unstructured", "1x4", "4x1"):
        masked, compressed = (Run(s, "granet", make, pattern=pattern) for s in STORAGES)
        for step in range(STEPS):
            masked.step(step)
            compressed.step(step)
            assert_alike(masked, compressed)
        layer = compressed.model[1]
        assert isinstance(layer, SparseConv1D)
        assert layer.index.rows == (4 if pattern == "1x4" else 1)


@pytest.mark.parametrize(("pattern", "rows"), [("unstructured", 1), ("4x1", 4), ("2x2", 1)])
def test_whole_blocks_of_four_outputs_share_an_entry(pattern, rows):
    run = Run("compressed", "static", pattern=pattern)
    kinds = [(type(layer), layer.index.rows) for layer in layers_of(run).values()]
    assert kinds == [(SparseConv2d, rows)] * 3 + [(SparseLinear, rows)] * 2


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_growth_is_by_accumulated_gradients(every, set_to_none):
    method = isoflop.RigL(update_every=every, end_fraction=1.0)
    runs = [Run(s, method) for s in STORAGES]
    for step, chunks in enumerate((2, 2, 1, 4, 2, 1, 1)):
        for run in runs:
            run.model.eval()
            run.optimizer.zero_grad(set_to_none=set_to_none)
            for i in range(chunks):
                (run.loss(step, slice(8 // chunks * i, 8 // chunks * (i + 1))) / chunks).backward()
            run.optimizer.step()
        assert_alike(*runs)
    assert any(sum(entry["new"].values()) for entry in runs[1].sparsifier.history)


def test_an_unexpected_backward_pass_prevents_growth():
    run = Run("compressed", isoflop.RigL(update_every=2, end_fraction=1.0))
    run.step(0)
    masks = run.sparsifier.masks
    run.optimizer.zero_grad()
    run.loss(1).backward()
    with pytest.warns(NoEffectWarning, match="nothing is dropped or grown"):
        run.loss(2).backward()
    run.optimizer.step()
    assert run.sparsifier.history[0]["skipped"] is True
    assert_same(masks, run.sparsifier.masks)
    for step in (3, 4):  # from now on it is known
        run.optimizer.zero_grad()
        run.loss(step).backward()
        run.loss(step + 2).backward()
        run.optimizer.step()
    assert run.sparsifier.history[1]["skipped"] is False
    assert sum(run.sparsifier.history[1]["new"].values()) > 0


def test_gradients_that_are_not_finite_decide_no_mask():
    run = Run("compressed", isoflop.RigL(update_every=2, end_fraction=1.0))
    run.step(0)
    masks = run.sparsifier.masks
    run.optimizer.zero_grad()
    (run.loss(1) * float("inf")).backward()
    run.optimizer.step()
    assert run.sparsifier.history[0]["skipped"] is True
    assert_same(masks, run.sparsifier.masks)


def test_clipped_gradients_choose_the_same_masks():
    masked, compressed = (Run(s, "rigl", adam=False) for s in STORAGES)
    for step in range(2):
        for run in (masked, compressed):
            run.optimizer.zero_grad()
            run.loss(step).backward()
            # By value, in which only the candidates of masked storage are clipped, nobody would
            # expect the same; by a factor all are.
            for p in run.model.parameters():
                assert p.grad is not None
                p.grad *= 0.125
            run.optimizer.step()
    assert_alike(masked, compressed)


# Memory


def dense_bytes(model, optimizer):
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    grads = [p.grad for p in model.parameters()]
    return sum(t.nbytes for t in (*model.parameters(), *grads, *state) if t is not None)


@pytest.mark.parametrize(
    ("cls", "options"), [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.AdamW, {})]
)
def test_memory_is_at_most_1_7_times_that_of_the_original_model(cls, options):
    dense = build_model("isoflop:resnet18_cifar", num_classes=10, base_width=8)
    model, plan = isoflop.transform(dense, isoflop.SparseWide(0.9), example_inputs=(1, 3, 32, 32))
    optimizers = [cls(m.parameters(), **options) for m in (dense, model)]
    method = isoflop.RigL(update_every=1, end_fraction=1.0)
    sparsify(model, optimizers[1], method, plan, total_steps=9, storage="compressed")
    for each, optimizer in zip((dense, model), optimizers, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            each(torch.randn(2, 3, 32, 32)).square().mean().backward()
            optimizer.step()
    trained = [dense_bytes(m, o) for m, o in zip((dense, model), optimizers, strict=True)]
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    index = sum(layer.index.nbytes for layer in layers)
    # By the count of what is stored: as many weights as the plan has, and the norms and biases.
    assert sum(len(layer.values) for layer in layers) == sum(x.nnz for x in plan.sparse_layers)
    assert trained[1] + index <= 1.7 * trained[0]
    assert trained[1] <= 1.1 * trained[0]


def test_dense_gradients_are_let_go_layer_by_layer():
    run = Run("compressed", isoflop.RigL(update_every=2, end_fraction=1.0), sparsity=0.9)
    run.step(0)
    run.optimizer.zero_grad()
    run.loss(1).backward()
    storage = run.sparsifier._storage
    assert isinstance(storage, CompressedStorage)
    sizes, kept = run.sparsifier.sizes, 0
    for name, nnz in run.sparsifier.nnz.items():
        growth = run.sparsifier.method.largest_growth(nnz, 2, STEPS)
        assert growth is not None
        kept += min(nnz + growth, sizes[name])
    assert 0 < storage.nbytes <= 8 * kept  # a position and a gradient each
    assert storage.nbytes < 4 * sum(sizes.values())
    run.optimizer.step()
    assert storage.nbytes == 0
    run.optimizer.zero_grad()
    run.loss(2).backward()  # no observed step
    assert storage.nbytes == 0


# The optimizer


def test_parameters_are_replaced_where_they_were():
    torch.manual_seed(0)
    model = small_net()
    groups = [
        {"params": [model[3].weight, model[0].weight], "weight_decay": 0.1},
        {"params": [model[9].bias, model[9].weight], "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    model(torch.randn(2, *SHAPE)).square().sum().backward()
    optimizer.step()
    old = {i: optimizer.state[model[i].get_parameter("weight")] for i in (0, 3, 9)}
    sparsify(
        model,
        optimizer,
        "static",
        plain_plan(model, 0.5, dense_ends=False, exclude=["5", "7"]),
        total_steps=5,
        storage="compressed",
    )
    first, second = optimizer.param_groups
    assert first["params"][0] is model[3].values
    assert first["params"][1] is model[0].values
    assert second["params"] == [model[9].bias, model[9].values]
    assert (first["weight_decay"], second["lr"]) == (0.1, 0.5)
    for i, state in old.items():
        layer = model[i]
        assert isinstance(layer, SparseLayer)
        moved = optimizer.state[layer.values]["momentum_buffer"]
        assert torch.equal(layer.scatter(moved), state["momentum_buffer"] * layer.mask())
    assert len(optimizer.state) == 4


@pytest.mark.parametrize("name", ["gmp", "granet"])
def test_parameters_shrink_in_place(name):
    run = Run("compressed", name)
    values = {name: layer.values for name, layer in layers_of(run).items()}
    before = run.sparsifier.nnz
    for step in range(STEPS):
        run.step(step)
    for name, layer in layers_of(run).items():
        assert layer.values is values[name]
        assert len(layer.values) == run.sparsifier.nnz[name]
        for tensor in run.optimizer.state[layer.values].values():
            assert tensor.ndim == 0 or tensor.shape == layer.values.shape
    assert sum(run.sparsifier.nnz.values()) < sum(before.values())


def test_optimizer_state_of_another_form_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        optimizer.state[parameter]["rows"] = torch.ones(4, 1)
    options: Any = {"sparsity": 0.5, "dense_ends": False, "total_steps": 3}
    with pytest.raises(OptimizerError, match="before the first step"):
        sparsify(
            model, optimizer, "set", storage="compressed", **sparsify_arguments(model, **options)
        )
    sparsify(model, optimizer, "set", **sparsify_arguments(model, **options))


# Copies


@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_averages_follow_the_masks(name):
    runs = [Run(s, name, adam=False) for s in STORAGES]
    averages = [AveragedModel(r.model, multi_avg_fn=get_ema_multi_avg_fn(0.8)) for r in runs]
    grown: set[tuple[str, int]] = set()
    for step in range(6):
        for run, average in zip(runs, averages, strict=True):
            before = run.sparsifier.masks
            run.step(step)
            if run is runs[1]:
                for key, mask in run.sparsifier.masks.items():
                    new = (mask & ~before[key]).flatten().nonzero().flatten().tolist()
                    grown |= {(key, i) for i in new}
            average.update_parameters(run.model)
    isoflop.apply_masks(averages[0])
    isoflop.densify_(averages[1])
    for key, mask in runs[0].sparsifier.masks.items():
        same = mask.clone().flatten()
        # Masked averages remember weights that went and came back.
        same[[i for name, i in grown if name == key]] = False
        one, two = (a.module.get_parameter(key).detach().flatten()[same] for a in averages)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert torch.equal(averages[1].module.get_buffer(key + "_mask"), mask)


def test_averages_that_do_not_follow_the_masks_are_refused():
    run = Run("compressed", adam=False)
    aligned, loose = copy.deepcopy(run.model), copy.deepcopy(run.model)
    for step in range(6):
        run.step(step)
        isoflop.align_masks(aligned, run.model)
        for averaged in (aligned, loose):
            pairs = zip(
                averaged.state_dict().values(), run.model.state_dict().values(), strict=True
            )
            with torch.no_grad():
                for mine, theirs in pairs:
                    mine.copy_(0.9 * mine + 0.1 * theirs)
    x = torch.randn(2, *SHAPE)
    for use in (lambda: loose(x), lambda: isoflop.densify_(loose)):
        with pytest.raises(IsoflopError, match="align_masks"):
            use()
    aligned(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aligned.parameters())
    assert_same(masks_of(aligned), run.sparsifier.masks)
    with pytest.raises(IsoflopError, match="compressed layers"):
        isoflop.apply_masks(aligned)


def test_averages_of_other_models_are_refused():
    run = Run("compressed")
    with pytest.raises(IsoflopError, match="the same compressed layers"):
        isoflop.align_masks(small_net(), run.model)
    with pytest.raises(IsoflopError, match="the same compressed layers"):
        isoflop.align_masks(small_net(), small_net())


def test_copies_and_pickles_are_independent(tmp_path):
    run = Run("compressed", isoflop.RigL(update_every=2))
    run.step(0)  # the next step is observed
    twin = copy.deepcopy(run.model)
    torch.save(run.model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    state = copy.deepcopy(run.model.state_dict())
    run.step(1)
    for other in (twin, loaded):
        assert_same(other.state_dict(), state)
        assert not any(m.observer for m in other.modules() if isinstance(m, SparseLayer))
        other(torch.randn(2, *SHAPE)).sum().backward()
    fresh = Run("compressed", isoflop.RigL(update_every=2), seed=5)
    fresh.model.load_state_dict(state)
    assert_same(fresh.sparsifier.masks, masks_of(twin))


def masks_of(model):
    return {f"{n}.weight": m.mask() for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def test_densified_models_compute_the_same():
    run = Run("compressed", pattern="4x1")
    for step in range(4):
        run.step(step)
    weights, masks = run.weights(), run.sparsifier.masks
    x = torch.randn(4, *SHAPE)
    expected = run.model.eval()(x)
    macs = run.sparsifier.forward_macs()[0]
    run.sparsifier.remove()
    model = isoflop.densify_(run.model)
    torch.testing.assert_close(model(x), expected)
    for key, weight in weights.items():
        assert torch.equal(model.get_parameter(key), weight)
        assert torch.equal(model.get_buffer(key + "_mask"), masks[key])
    assert isoflop.profile(model, (1, *SHAPE)).macs == macs


def test_the_sparsifier_is_freed_with_the_optimizer():
    run = Run("compressed", isoflop.RigL(update_every=1))
    reference, model = weakref.ref(run.sparsifier), run.model
    run.step(0)
    x = torch.randn(2, *SHAPE)
    del run
    gc.collect()
    assert reference() is None
    model(x).sum().backward()  # what is left behind does nothing
    model_reference = weakref.ref(model)
    del model
    gc.collect()
    assert model_reference() is None


def test_dense_weights_are_let_go():
    run = Run("compressed", "static", sparsity=0.9)
    for name, layer in layers_of(run).items():
        assert layer.values.untyped_storage().nbytes() == 4 * run.sparsifier.nnz[name]


# Precision


def test_autocast_and_bfloat16_train():
    for dtype in (torch.float32, torch.bfloat16):
        run = Run("compressed", make=lambda dtype=dtype: small_net().to(dtype), batches=None)
        for step in range(4):
            x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(step)).to(dtype)
            run.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                loss = run.model(x).float().square().mean()
            loss.backward()
            run.optimizer.step()
        assert sum(sum(e["new"].values()) for e in run.sparsifier.history) > 0
        for layer in layers_of(run).values():
            assert layer.values.dtype == dtype
            assert layer.values.isfinite().all()


# Mistakes. None may change anything.


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    return model


def hooked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].get_parameter("weight").register_hook(lambda grad: grad)
    return model


def held(hold):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].kept = hold(model[1].weight)
    return model


def given(add):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    add(model[1])
    return model


REFUSED: dict[str, tuple[Any, str]] = {
    "conv1d": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1)), "belongs to a Conv1d"),
    "conv3d": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Conv3d(4, 4, 1)), "belongs to a Conv3d"),
    "transposed": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 1)),
        "'1.weight' .* ConvTranspose2d, and only nn.Linear, nn.Conv2d",
    ),
    "subclass": (
        lambda: nn.Sequential(nn.Linear(4, 4), type("Own", (nn.Linear,), {})(4, 4)),
        "'1.weight' .* belongs to a Own, and only nn.Linear",
    ),
    "tied": (tied, "tied: '1.weight', '2.weight' are one parameter"),
    "type": (lambda: nn.Sequential(nn.Linear(4, 4)).half(), "torch.float16 is not float32"),
    "padding": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        "the same number of zeros",
    ),
    "same": (lambda: nn.Sequential(nn.Conv2d(4, 4, 2, padding="same")), "on both sides"),
    "meta": (lambda: nn.Sequential(nn.Linear(4, 4, device="meta")), "it is on meta"),
    "hooked": (hooked, "it has hooks, which would get the gradients of the non-zeros alone"),
    "own mask": (
        lambda: given(lambda layer: layer.register_buffer("mask", torch.ones(4, 4))),
        "given 'mask', which sparse layers cannot keep",
    ),
    "own buffer": (
        lambda: given(lambda layer: layer.register_buffer("scale", torch.ones(1))),
        "given 'scale'",
    ),
    "own parameter": (
        lambda: given(lambda layer: layer.register_parameter("gain", nn.Parameter(torch.ones(1)))),
        "given 'gain'",
    ),
    "own child": (lambda: given(lambda layer: layer.add_module("act", nn.ReLU())), "given 'act'"),
    "own index": (lambda: given(lambda layer: setattr(layer, "index", 3)), "given 'index'"),
    "own activation": (
        lambda: given(lambda layer: setattr(layer, "activation", "relu")),
        "given 'activation'",
    ),
    "list": (lambda: held(lambda w: [w]), "'0.kept' holds it too"),
    "dict": (lambda: held(lambda w: {"a": (1, w)}), "'0.kept' holds it too"),
    "partial": (lambda: held(lambda w: functools.partial(F.linear, weight=w)), "'0.kept' holds it"),
    "closure": (lambda: held(lambda w: lambda x: F.linear(x, w)), "'0.kept' holds it too"),
    "object": (lambda: held(lambda w: types.SimpleNamespace(w=[w])), "'0.kept' holds it too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_without_compressed_form_are_refused(case):
    make, message = REFUSED[case]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [id(m) for m in model.modules()], list(model.state_dict())
    with pytest.raises(IsoflopError, match=f"{message}.*Use storage='masked'"):
        sparsify(
            model,
            optimizer,
            "rigl",
            plain_plan(model, 0.5, dense_ends=False),
            total_steps=5,
            storage="compressed",
        )
    assert before == ([id(m) for m in model.modules()], list(model.state_dict()))
    assert [p for g in optimizer.param_groups for p in g["params"]] == list(model.parameters())
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"storage": "sparse"}, UnknownNameError, "Unknown storage 'sparse'"),
        (
            {"pattern": "2:4"},
            IsoflopError,
            "kinds block, unstructured, a method that grows without",
        ),
        ({"method": "sr_ste"}, IsoflopError, "'sr_ste' cannot train .* static, .*'masked'"),
    ],
)
def test_bad_arguments_change_nothing(options, error, message):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(model.state_dict())
    options = {"method": "rigl", "storage": "compressed", "sparsity": 0.5, **options}
    with pytest.raises(error, match=message):
        sparsify(
            model,
            optimizer,
            options.pop("method"),
            total_steps=500,
            **sparsify_arguments(model, **options),
        )
    assert list(model.state_dict()) == before
    assert not optimizer._optimizer_step_pre_hooks


def test_wrapped_models_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(IsoflopError, match="Call `sparsify` first"):
            sparsify(
                model,
                optimizer,
                "set",
                plain_plan(model, 0.5, dense_ends=False),
                total_steps=5,
                storage="compressed",
            )
    finally:
        torch.distributed.destroy_process_group()


def test_compressed_models_are_not_sparsified_again():
    run = Run("compressed")
    with pytest.raises(IsoflopError, match=r"compressed already, at '0', '3'.*densify"):
        sparsify(run.model, run.optimizer, "set", 0.5, total_steps=5)


def test_states_of_another_storage_are_refused():
    masked, compressed = (Run(s) for s in STORAGES)
    with pytest.raises(IsoflopError, match="the storage 'masked', this one 'compressed'"):
        compressed.sparsifier.load_state_dict(masked.sparsifier.state_dict())
