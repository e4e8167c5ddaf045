"""Which layers run on the sparse kernels. Times are made up, so that the choices are known."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from tests.zoo import cifar_resnet
from torch import nn

from isoflop.errors import InputError, IsoflopError, KernelError, NoEffectWarning
from isoflop.kernels import (
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    accelerate,
    freeze,
)
from isoflop.kernels.autotune import accelerate as choose
from isoflop.kernels.autotune import choices as made
from isoflop.kernels.autotune import timing
from isoflop.kernels.autotune.accelerate import accelerate_
from isoflop.kernels.autotune.candidates import sparse_layer
from isoflop.kernels.autotune.choices import _cheapest
from isoflop.kernels.autotune.contestants import WithEpilogue
from isoflop.kernels.cpu import variants
from isoflop.kernels.cpu.layout import LayoutBatchNorm2d, LayoutConv2d, LayoutMaxPool2d
from isoflop.kernels.cpu.variants import VARIANTS, Variant
from isoflop.masks import named_masks, remove_mask, set_mask

Times = dict[str, dict[str, float]]


class Clock:
    """Made-up times: every contestant runs once, and takes what `seconds` says."""

    def __init__(self, **seconds):
        self.seconds = seconds
        self.measured = 0

    def __call__(self, contestants):
        self.measured += 1
        for run in contestants.values():
            run()
        return {name: self.seconds[name] for name in contestants}


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Pretend that there are kernels, which win everywhere."""
    made_up = Clock(dense=9.0, sparse=1.0, before=2.0, after=1.0)
    monkeypatch.setattr(choose, "available", lambda: True)
    monkeypatch.setattr(timing, "measure", made_up)
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    return made_up


def masked(model, density=0.4):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            set_mask(module, "weight", torch.rand_like(module.weight) < density)
    return model


def compressed(model):
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            sparse = sparse_layer(module, module.get_buffer("weight_mask"))
            assert sparse is not None
            model.set_submodule(path, sparse)
    return model


def net():
    """A stem that stays dense, and layers that are masked."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    masked(model[4:])
    return model


def same(model, other, shape=(3, 3, 8, 8)):
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)


def test_masked_layers_become_sparse_where_these_win(clock):
    model = net().eval()
    before = copy.deepcopy(model)
    fast, report = accelerate(model, example_inputs=(4, 3, 8, 8))
    assert report.accelerated
    assert [layer.path for layer in report.layers] == ["0", "4", "9"]
    assert {layer.chosen for layer in report.layers} == {"sparse"}
    layers = list(fast.children())
    assert isinstance(layers[0], SparseConv2d)
    assert isinstance(layers[1], LayoutBatchNorm2d)
    assert isinstance(layers[3], LayoutMaxPool2d)
    assert isinstance(layers[4], SparseConv2d)
    assert isinstance(layers[9], SparseLinear)
    assert not fast.training
    same(fast, model)
    # The model itself is as it was.
    assert str(model) == str(before)
    assert len(list(named_masks(model))) == 2
    assert "accelerated" in str(report)
    assert report.to_dict()["layers"][1]["nnz"] == int(model[4].get_buffer("weight_mask").sum())


def test_layers_stay_dense_where_that_wins(clock):
    clock.seconds |= {"dense": 1.0, "sparse": 2.0}
    model = net().eval()
    fast, report = accelerate(model, example_inputs=(4, 3, 8, 8))
    assert {layer.chosen for layer in report.layers} == {"dense"}
    assert not any(isinstance(m, SparseLayer | LayoutConv2d) for m in fast.modules())
    same(fast, model)


def test_a_model_that_got_slower_stays_as_it_was(clock):
    clock.seconds |= {"after": 3.0}
    model = net()
    fast, report = accelerate(model, example_inputs=(4, 3, 8, 8))
    assert fast is model
    assert model.training
    assert not report.accelerated
    assert "left as it was" in str(report)


def test_frozen_models(clock):
    model = masked(torchvision.models.resnet18(num_classes=5)).eval()
    remove_mask(model.conv1)
    frozen = freeze(model, example_inputs=(2, 3, 32, 32))
    fast, report = accelerate(frozen, example_inputs=(2, 3, 32, 32))
    assert len(report.layers) == 21
    assert {len(layer.inputs) for layer in report.layers} == {1, 2}
    same(fast, model, (2, 3, 32, 32))
    # The stem has been dense, its activation a module; now it is part of the layer.
    assert [sum(isinstance(m, nn.ReLU) for m in each.modules()) for each in (frozen, fast)] == [
        1,
        0,
    ]
    clock.seconds |= {"dense": 0.5}
    dense, report = accelerate(frozen, example_inputs=(2, 3, 32, 32), cache=False)
    assert not any(isinstance(m, SparseLayer) for m in dense.modules())
    assert any(isinstance(m, WithEpilogue) for m in dense.modules())
    same(dense, model, (2, 3, 32, 32))


def test_training_keeps_parameters_and_names(clock):
    model = compressed(masked(cifar_resnet())).train()
    reference = copy.deepcopy(model)
    parameters, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    model.load_state_dict(state)
    gradients = {name: copy.deepcopy(p.grad) for name, p in parameters.items()}
    random = torch.get_rng_state()

    clock.seconds |= {"dense": 0.5}
    report = accelerate_(model, example_inputs=(4, 3, 16, 16))
    assert {layer.chosen for layer in report.layers} == {"dense"}
    assert {m.backend for m in model.modules() if isinstance(m, SparseLayer)} == {"dense"}
    assert all(parameters[name] is p for name, p in model.named_parameters())
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)

    clock.seconds |= {"sparse": 0.1}
    report = accelerate_(model, example_inputs=(4, 3, 16, 16), cache=False)
    assert {m.backend for m in model.modules() if isinstance(m, SparseLayer)} == {"sparse"}
    assert any(isinstance(m, LayoutBatchNorm2d) for m in model.modules())
    assert all(module.training for module in model.modules())
    assert all(parameters[name] is p for name, p in model.named_parameters())

    # Both train alike.
    for either in (model, reference):
        either.zero_grad()
        torch.manual_seed(3)
        either(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_training_that_got_slower_is_undone(clock):
    model = compressed(masked(cifar_resnet())).train()
    text = str(model)
    clock.seconds |= {"after": 3.0, "dense": 0.5}
    report = accelerate_(model, example_inputs=(4, 3, 16, 16))
    assert not report.accelerated
    assert str(model) == text
    assert {m.backend for m in model.modules() if isinstance(m, SparseLayer)} == {"sparse"}


def test_times_are_measured_once_for_each_shape(clock, tmp_path):
    model = net()
    accelerate(model, example_inputs=(4, 3, 8, 8))
    first = clock.measured
    accelerate(model, example_inputs=(4, 3, 8, 8))
    assert clock.measured == first
    accelerate(model, example_inputs=(5, 3, 8, 8))
    assert clock.measured == 2 * first
    accelerate(model, example_inputs=(4, 3, 8, 8), cache=False)
    assert clock.measured == 3 * first
    accelerate(model, example_inputs=(4, 3, 8, 8), cache=tmp_path / "other.json")
    assert (tmp_path / "other.json").exists()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (made, "fingerprint"),
        (made, "processor_name"),
        (made, "isa"),
        (torch, "__version__"),
        (torch, "get_float32_matmul_precision"),
    ],
)
def test_times_are_of_one_build_on_one_machine(clock, monkeypatch, where, name):
    model = net()
    accelerate(model, example_inputs=(4, 3, 8, 8))
    first = clock.measured
    monkeypatch.setattr(where, name, "9" if name == "__version__" else lambda: "another")
    accelerate(model, example_inputs=(4, 3, 8, 8))
    assert clock.measured == 2 * first


def in_place(model, **options):
    return model, accelerate_(model, **options)


RUNS = {"inference": accelerate, "training": in_place}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_choices_of_an_earlier_report(clock, mode):
    def model():
        torch.manual_seed(0)
        return compressed(masked(cifar_resnet())).train()

    inputs = {"example_inputs": (4, 3, 16, 16)}
    run = RUNS[mode]
    measured, report = run(model(), **inputs)
    chosen: dict[str, str] = {**report.choices, next(iter(report.choices)): "dense"}
    assert {*report.choices.values()} == {"sparse"}
    count = clock.measured
    given, report = run(model(), choices=chosen, **inputs)
    assert clock.measured == count
    assert report.accelerated
    assert report.choices == chosen
    assert "nan" in str(report)
    for path, backend in chosen.items():
        layer = given.get_submodule(path)
        if mode == "training":
            assert layer.backend == backend
        else:
            assert isinstance(layer, SparseLayer) == (backend == "sparse")
    same(given, measured, (4, 3, 16, 16))
    # A model that stayed as it was has no choices.
    before = model()
    after, report = run(before, choices={}, **inputs)
    assert after is before
    assert str(after) == str(model())
    assert report.choices == {}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_bfloat16_is_chosen_where_it_is_allowed_and_wins(clock, monkeypatch, mode):
    monkeypatch.setattr(variants, "has_bfloat16", lambda: True)
    clock.seconds |= {"sparse_bfloat16": 0.5}

    def model():
        return compressed(masked(cifar_resnet())).train()

    inputs = {"example_inputs": (4, 3, 16, 16)}
    run = RUNS[mode]
    _, report = run(model(), **inputs)
    assert {layer.chosen for layer in report.layers} == {"sparse"}
    assert "bf16" not in str(report)
    plain = clock.measured
    fast, report = run(model(), allow_bf16=True, **inputs)
    backends = {m.backend for m in fast.modules() if isinstance(m, SparseLayer)}
    assert backends == {"sparse_bfloat16"}
    assert any(isinstance(m, LayoutBatchNorm2d) for m in fast.modules())
    assert "sparse bf16 ms" in str(report)
    # What was measured with more contestants serves for fewer, and replaces what was before.
    assert clock.measured == 2 * plain - conversions(report)
    run(model(), allow_bf16=True, **inputs)
    run(model(), **inputs)
    assert clock.measured == 2 * plain - conversions(report)
    # The choices say what was allowed.
    given, report = run(model(), choices=report.choices, **inputs)
    assert {m.backend for m in given.modules() if isinstance(m, SparseLayer)} == backends
    monkeypatch.setattr(variants, "has_bfloat16", lambda: False)
    with pytest.raises(KernelError, match="products of bfloat16, which this one lacks"):
        run(model(), choices=report.choices, **inputs)
    _, report = run(model(), allow_bf16=True, **inputs)
    assert {layer.chosen for layer in report.layers} == {"sparse"}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_further_variant_takes_one_row(clock, monkeypatch, mode):
    kernels = VARIANTS["sparse"].linear, VARIANTS["sparse"].conv2d
    row = Variant(
        name="linear_only",
        title="linear only",
        linear=kernels[0],
        conv2d=kernels[1],
        takes=lambda index: index.shape[2:] == (1, 1),
    )
    monkeypatch.setitem(VARIANTS, row.name, row)
    clock.seconds |= {row.name: 0.5}
    model = compressed(masked(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(72, 8))))
    _, report = RUNS[mode](model, example_inputs=(4, 3, 5, 5))
    assert report.choices["2"] == row.name
    assert {layer.path: row.name in layer.seconds for layer in report.layers} == {
        "0": False,
        "2": True,
    }
    assert "linear only ms" in str(report)


def conversions(report):
    """Return how many times of conversions were measured."""
    return len({(layer.inputs[0]) for layer in report.layers if layer.conversions})


def test_conversions_count():
    convs = ["a", "b", "c"]
    conversions: Times = {name: {"dense": 1.0, "sparse": 1.0} for name in convs}
    # b alone would gain 1.5 and cost 2 conversions.
    seconds: Times = {"b": {"dense": 2.0, "sparse": 0.5}}
    assert _cheapest(convs, seconds, conversions) == ("dense", "dense", "dense")
    # With c it stays in the layout to the end.
    seconds["c"] = {"dense": 1.0, "sparse": 1.0}
    assert _cheapest(convs, seconds, conversions) == ("dense", "sparse", "sparse")
    # A layer that loses a little keeps the layout between two that win.
    seconds = {name: {"dense": 3.0, "sparse": 1.0} for name in "ac"}
    seconds["b"] = {"dense": 1.0, "sparse": 2.0}
    assert _cheapest(convs, seconds, conversions) == ("sparse", "sparse", "sparse")
    # Those that multiply in another precision have the same layout.
    seconds["b"] = {"dense": 1.0, "sparse": 2.0, "sparse_bfloat16": 1.5}
    assert _cheapest(convs, seconds, conversions) == ("sparse", "sparse_bfloat16", "sparse")
    assert _cheapest([], {}, {}) == ()


def test_a_single_layer(clock):
    layer = masked(nn.Linear(8, 4))
    fast, _ = accelerate(layer, example_inputs=(3, 8))
    assert isinstance(fast, SparseLinear)
    same(fast, layer, (3, 8))


def test_layers_that_are_called_by_keyword_or_not_at_all_stay(clock):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.idle = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.second(input=self.first(x))

    model = masked(Odd())
    fast, report = accelerate(model, example_inputs=(3, 8))
    assert [layer.path for layer in report.layers] == ["first"]
    same(fast, model, (3, 8))


def one_more(module, args, output: Any):
    return output + 1


class Bidirectional(nn.Module):
    """Masked weights of many kinds, of which one layer has kernels."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.recurrent = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.pair = nn.Bilinear(4, 4, 4)
        self.row, self.up = nn.Conv1d(4, 4, 1), nn.ConvTranspose1d(4, 4, 1)
        self.image, self.volume = nn.Conv2d(4, 4, 1, padding_mode="circular"), nn.Conv3d(4, 4, 1)
        self.hooked, self.tied, self.other = (nn.Linear(4, 4) for _ in range(3))
        self.read, self.idle, self.fine = (nn.Linear(4, 4) for _ in range(3))
        self.hooked.register_forward_hook(one_more)
        self.other.weight = self.tied.weight

    def forward(self, tokens):
        x, _ = self.recurrent(self.embedding(tokens))
        x, _ = self.attention(x, x, x, need_weights=False)
        y = self.up(self.row(self.pair(x, x).transpose(1, 2)))
        y = self.volume(self.image(y[..., None])[..., None]).flatten(2).transpose(1, 2)
        y = self.hooked(self.tied(self.other(self.read(y))) + self.read.weight.sum())
        return self.fine(y)


def all_masked(model):
    torch.manual_seed(0)
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and weight.ndim > 1:
                set_mask(module, name, torch.rand(weight.shape) < 0.4)
    return model


REASONS = {
    "embedding": "is of class Embedding",
    "recurrent.weight_ih_l0": "is of class LSTM",
    "recurrent.weight_hh_l0": "is of class LSTM",
    "attention.in_proj_weight": "is of class MultiheadAttention",
    "attention.out_proj": "'attention' uses too",
    "pair": "is of class Bilinear",
    "row": "an nn.Conv2d with a kernel of height 1 computes the same",
    "up": "is of class ConvTranspose1d",
    "image": "'circular'",
    "volume": "is of class Conv3d",
    "hooked": "has hooks",
    "tied": "shares its weight",
    "other": "shares its weight",
    "read": "'Bidirectional' uses too",
    "idle": "is not called",
}


def test_the_report_says_why_layers_stay_dense(clock):
    model = all_masked(Bidirectional()).eval()
    tokens = torch.randint(0, 8, (3, 2))
    fast, report = accelerate(model, example_inputs=tokens)
    assert [layer.path for layer in report.layers] == ["fine"]
    assert report.skipped.keys() == REASONS.keys()
    for path, reason in REASONS.items():
        assert reason in report.skipped[path]
        assert f"{path} {report.skipped[path]}" in str(report)
    torch.testing.assert_close(fast(tokens), model(tokens))
    frozen = freeze(model, example_inputs=tokens)
    fast, report = accelerate(frozen, example_inputs=tokens)
    assert report.skipped.keys() >= REASONS.keys() - {"idle"}
    torch.testing.assert_close(fast(tokens), model(tokens))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_that_has_kernels(clock, kind, frozen):
    model = all_masked(nn.Sequential(kind(4, 4, 3), nn.ReLU()))
    shape = (2, 4, *[5] * (model[0].get_parameter("weight").ndim - 2))
    model = freeze(model, example_inputs=shape) if frozen else model
    with pytest.warns(NoEffectWarning, match=f"0 is of class {kind.__name__}, for which"):
        fast, report = accelerate(model, example_inputs=shape)
    assert fast is model
    assert "nan" not in str(report)
    assert "nothing was measured; left as it was" in str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_other_types_of_numbers(clock, dtype, frozen):
    model = masked(nn.Sequential(nn.Linear(8, 8), nn.ReLU())).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    if frozen:
        _, report = accelerate(freeze(model, example_inputs=x), example_inputs=x)
    else:
        with pytest.warns(NoEffectWarning, match="use `model.float"):
            _, report = accelerate(model, example_inputs=x)
    assert str(dtype) in report.skipped["0"]


def test_masked_layers_do_not_train_on_kernels(clock):
    model = masked(nn.Sequential(nn.Linear(8, 8)))
    with pytest.warns(NoEffectWarning, match="storage='compressed'"):
        accelerate_(model, example_inputs=(3, 8))


def test_models_whose_course_depends_on_values(clock):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.second(x) if x.sum() > 0 else self.second(self.first(x))

    model = masked(Branching())
    fast, report = accelerate(model, example_inputs=-torch.ones(3, 8))
    assert [layer.path for layer in report.layers] == ["first", "second"]
    for x in (torch.ones(2, 8), -torch.ones(2, 8)):
        torch.testing.assert_close(fast(x), model(x))


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(choose, "available", lambda: False)
    model = net()
    with pytest.warns(NoEffectWarning, match="no compiled kernels"):
        fast, report = accelerate(model, example_inputs=(4, 3, 8, 8))
    assert fast is model
    assert report.layers == ()


def test_nothing_to_accelerate(clock):
    with pytest.warns(NoEffectWarning, match="no masked layer"):
        accelerate(nn.Linear(3, 3), example_inputs=(1, 3))
    with pytest.warns(NoEffectWarning, match="compressed"):
        accelerate_(net(), example_inputs=(4, 3, 8, 8))


def test_mistakes(clock):
    with pytest.raises(InputError):
        accelerate(net(), example_inputs=(4, 5, 8, 8))
    every = dict.fromkeys("049", "sparse")
    for choices in (
        {"0": "sparse"},
        {**every, "1": "dense"},
        {"0": "sparse", "4": "sparse", "9": "best"},
    ):
        with pytest.raises(IsoflopError, match="choices are not of this model"):
            accelerate(net(), example_inputs=(4, 3, 8, 8), choices=choices)  # pyright: ignore
