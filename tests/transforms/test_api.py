import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.zoo import ZOO, cifar_resnet, mlp
from torch import nn
from torch.nn.utils import prune

import isoflop
from isoflop.methods import METHODS


def test_a_too_small_budget_says_what_would_help():
    model = nn.Sequential(
        nn.Linear(1000, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1000)
    )
    with pytest.raises(isoflop.BudgetError, match=r"lower sparsity.*dense_ends=False.*scope"):
        isoflop.transform(model, isoflop.SparseWide(0.75), example_inputs=(1, 1000))
    _, plan = isoflop.transform(
        model, isoflop.SparseWide(0.75, dense_ends=False), example_inputs=(1, 1000)
    )
    assert plan.macs == plan.dense_macs


def test_no_effect_warns():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    with pytest.warns(isoflop.NoEffectWarning, match="too small for so low"):
        _, plan = isoflop.transform(model, isoflop.SparseWide(0.1), example_inputs=(1, 4))
    assert plan.macs == plan.dense_macs


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"model": "resnet18"}, "torch.nn.Module"),
        ({"config": "wide"}, "needs sparsity"),
        ({"config": "wdie"}, "Did you mean 'wide'"),
        ({"config": isoflop.SparseWide}, "must be a transform"),
        ({"scope": "network"}, "Known: model, layers"),
        ({"example_inputs": (2, 21)}, r"cannot be traced.*\(2, 21\)"),
        ({"example_inputs": None}, "shape such as"),
    ],
)
def test_wrong_arguments(arguments, match):
    values = {
        "model": mlp(),
        "config": isoflop.SparseWide(0.5),
        "example_inputs": (2, 20),
        "scope": "model",
    }
    values |= arguments
    with pytest.raises(isoflop.IsoflopError, match=match):
        isoflop.transform(values.pop("model"), values.pop("config"), **values)


def test_models_that_are_not_plain_and_dense_are_refused():
    model: Any = mlp()
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(isoflop.WideningError, match="3 is parametrised"):
        isoflop.transform(model, isoflop.SparseWide(0.5), example_inputs=(2, 20))
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(isoflop.WideningError, match="0 is lazy"):
        isoflop.transform(lazy, isoflop.SparseWide(0.5), example_inputs=(2, 20))
    make, shape = ZOO["vgg"]
    model, plan = isoflop.transform(make(), isoflop.SparseParallel(0.5), example_inputs=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(model, optimizer, "static", plan, total_steps=10)
    with pytest.raises(isoflop.WideningError, match="masked already"):
        isoflop.transform(model, isoflop.SparseWide(0.5), example_inputs=shape)


def test_a_weight_used_outside_its_layer_is_not_replaced():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.linear(self.b(self.stem(x)), self.a.weight))

    _, plan = isoflop.transform(Functional(), isoflop.SparseParallel(0.5), example_inputs=(1, 4))
    assert {layer.source for layer in plan.sparse_layers} == {"b"}


def test_shared_layers_stay_shared():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(4, 8), layer, nn.ReLU(), layer, nn.Linear(8, 2))
    for config in (isoflop.SparseWide(0.75), isoflop.SparseParallel(0.75)):
        new, plan = isoflop.transform(model, config, example_inputs=(1, 4))
        assert new.get_submodule("1") is new.get_submodule("3")
        assert plan.sparse_layers[0].macs_per_weight == 2


# SynFlow prefers the 3×3 path to the 1×1 shortcut beside it, whose last weights are then floored.
@pytest.mark.filterwarnings("ignore::isoflop.errors.LayerCollapseWarning")
@pytest.mark.parametrize("method", isoflop.list_methods())
def test_every_method_trains_a_transformed_model_at_its_planned_flops(method):
    make, shape = ZOO["cifar_resnet"]
    model, plan = isoflop.transform(make(), isoflop.SparseWide(0.75), example_inputs=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cls = METHODS.get(method)
    few = {"update_every": 1, "rounds": 4}
    options = {field.name: few[field.name] for field in fields(cls) if field.name in few}
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        cls(**options),
        plan,
        total_steps=6,
        scoring=isoflop.ScoringData(
            batches=[(torch.randn(8, 3, 16, 16), torch.arange(8))],
            loss=F.cross_entropy,
            example_inputs=shape,
        ),
    )
    macs = []
    for _ in range(6):
        macs.append(isoflop.profile(model, shape).macs)
        F.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.arange(8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    budget = plan.unmasked_macs if method == "dense" else plan.dense_macs
    assert sum(macs) / 6 == pytest.approx(budget, rel=1e-6)
    assert sparsifier.average_macs() == pytest.approx(budget, rel=1e-6)
    assert sparsifier.plan is not None
    if method != "dense":
        assert sparsifier.plan.macs == isoflop.profile(model, shape).macs


@pytest.mark.parametrize("allocation", ["er", "erk"])
def test_other_allocations_meet_the_dense_budget_too(allocation):
    model, plan = isoflop.transform(
        cifar_resnet(), isoflop.SparseWide(0.75), example_inputs=(1, 3, 32, 32)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(
        model, optimizer, "static", isoflop.reallocate(plan, allocation), total_steps=10
    )
    macs = isoflop.profile(model, (1, 3, 32, 32)).macs
    assert abs(macs - plan.dense_macs) <= 1e-6 * plan.dense_macs
    assert sparsifier.nnz != {layer.parameter: layer.nnz for layer in plan.sparse_layers}


def test_the_plan_of_another_model_is_refused_before_anything_changes():
    make, shape = ZOO["vgg"]
    _, plan = isoflop.transform(make(), isoflop.SparseWide(0.5), example_inputs=shape)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(isoflop.PlanError, match="this model"):
        isoflop.sparsify(model, optimizer, "rigl", plan, total_steps=10)
    assert not any(name.endswith("_mask") for name in model.state_dict())


def test_the_public_names_are_the_registered_ones():
    assert set(isoflop.list_transforms()) >= {"wide", "parallel", "factorized", "doped", "low_rank"}
    assert set(isoflop.list_methods()) >= {"dense", "static", "set", "rigl"}
    assert "unstructured" in isoflop.list_patterns()
    assert all(hasattr(isoflop, name) for name in isoflop.__all__)


def test_a_width_that_rightly_stays_can_be_excluded():
    class Tokens(nn.Module):
        """Mixes nine tokens and sixteen channels."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.channels = nn.Linear(4, 16), nn.Linear(16, 16)
            self.tokens, self.head = nn.Linear(9, 9), nn.Linear(16, 2)

        def forward(self, x):
            x = self.channels(self.embed(x))
            return self.head(x + self.tokens(x.mT).mT)

    config = isoflop.SparseWide(0.75)
    with pytest.raises(isoflop.WideningError, match="exclude 'tokens'"):
        isoflop.transform(Tokens(), config, example_inputs=(1, 9, 4))
    model, plan = isoflop.transform(
        Tokens(), "wide", sparsity=0.75, example_inputs=(1, 9, 4), exclude=["tokens"]
    )
    assert model.get_parameter("channels.weight").shape == (32, 32)
    assert model.get_parameter("tokens.weight").shape == (9, 9)
    assert {layer.parameter for layer in plan.sparse_layers} == {"channels.weight"}


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(isoflop.WideningError, match=r"0 is quantised \(Linear\)"):
        isoflop.transform(quantised, isoflop.SparseWide(0.5), example_inputs=(1, 4))
    integers: Any = copy.deepcopy(model)
    integers[1].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(isoflop.WideningError, match="1 is quantised"):
        isoflop.transform(integers, isoflop.SparseWide(0.5), example_inputs=(1, 4))


@pytest.mark.parametrize("exclude", ["2", ("2",), ["2"], {"2"}, (p for p in ["2"])])
def test_a_string_is_one_pattern(exclude):
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    _, plan = isoflop.transform(
        model, "parallel", sparsity=0.5, example_inputs=(2, 8), exclude=exclude
    )
    assert {layer.source for layer in plan.sparse_layers} == {"1", "3"}
    config = isoflop.SparseParallel(0.5, exclude="stages.2")  # pyright: ignore[reportArgumentType]
    assert config.exclude == ("stages.2",)
    with pytest.raises(isoflop.IsoflopError, match="exclude must be a string"):
        isoflop.transform(
            model,
            "parallel",
            sparsity=0.5,
            example_inputs=(2, 8),
            exclude=3,
        )


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pruned, r"2 is pruned.*prune\.remove\(module, 'weight'\)"),
        (lambda layer: prune.random_unstructured(layer, "bias", 0.5), "remove.*'bias'"),
        (torch.nn.utils.weight_norm, "remove_weight_norm"),
        (torch.nn.utils.spectral_norm, "remove_spectral_norm"),
        (torch.nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
        (torch.nn.utils.parametrizations.orthogonal, "remove_parametrizations"),
    ],
)
@pytest.mark.parametrize("kind", [isoflop.SparseWide, isoflop.SparseParallel])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_whose_weight_is_computed_are_refused_with_the_remedy(change, message, kind):
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    change(model[2])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(isoflop.WideningError, match=message):
        isoflop.transform(model, kind(0.5), example_inputs=(2, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_options_of_a_wrong_type_are_refused():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    for seed in ("0", 1.5, None, True):
        with pytest.raises(isoflop.IsoflopError, match="seed must be an integer"):
            isoflop.transform(
                model,
                isoflop.SparseWide(0.5),
                example_inputs=(2, 8),
                seed=seed,  # pyright: ignore
            )
    for width in ("2", True, float("nan")):
        with pytest.raises(isoflop.IsoflopError, match="width must be"):
            isoflop.LowRank(width=width)  # pyright: ignore
