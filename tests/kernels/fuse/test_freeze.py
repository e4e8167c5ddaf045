"""Models for inference compute what the trained ones do."""

import copy

import pytest
import timm
import torch
import torchvision
from tests.zoo import ZOO, FromFloats, gpt2
from torch import fx, nn

import isoflop
from isoflop.errors import InputError
from isoflop.kernels import (
    SparseConv1D,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    freeze,
    frozen_dense,
)
from isoflop.masks import named_masks, set_mask

VISION = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "resnet34": lambda: torchvision.models.resnet34(num_classes=10),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "timm_resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "timm_mobilenet_v2": lambda: timm.create_model("mobilenetv2_050", num_classes=10),
}


def disturb(model):
    """Give every normalisation statistics and weights that folding cannot get right by chance."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                nn.init.normal_(module.get_buffer("running_mean"), 0, 0.2)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.Linear):  # some heads start at zero
            nn.init.normal_(module.weight, 0, 0.1)
    return model


def mask_layers(model, density=0.4):
    """Mask every linear layer and convolution at random."""
    torch.manual_seed(1)
    for module in model.modules():
        if (
            isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
            or type(module).__name__ == "Conv1D"
        ):
            set_mask(module, "weight", torch.rand_like(module.weight) < density)
    return model.eval()


def assert_same(frozen, model, *shape):
    torch.manual_seed(2)
    x = torch.randn(shape)
    with torch.no_grad():
        expected, ours = model(x), frozen(x)
    assert expected.std() > 0
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", VISION)
def test_vision_models(name):
    model = mask_layers(disturb(VISION[name]()))
    before = copy.deepcopy(model.state_dict())
    layers = count(model, nn.Conv2d | nn.Linear)
    frozen = freeze(model, example_inputs=(2, 3, 64, 64))
    assert isinstance(frozen, fx.GraphModule)
    assert count(frozen, SparseLayer) == layers
    assert count(frozen, nn.BatchNorm2d | nn.Identity | nn.Dropout) == 0
    assert_same(frozen, model, 3, 3, 64, 64)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    if "resnet" in name:
        residuals = [n for n in frozen.graph.nodes if n.op == "call_module" and len(n.args) == 2]
        assert len(residuals) == {"resnet34": 16, "resnet50": 16}.get(name, 8)
        assert count(frozen, nn.ReLU) == 0
        assert not any("add" in str(node.target) for node in frozen.graph.nodes)


@pytest.mark.parametrize("name", [name for name in ZOO if "resnet" not in name])
def test_models_of_all_kinds(name):
    build, shape = ZOO[name]
    model = mask_layers(disturb(build()))
    frozen = freeze(model, example_inputs=shape)
    assert_same(frozen, model, *shape)
    assert not list(named_masks(frozen))
    assert count(frozen, SparseLayer) > 0


def test_a_widened_gpt2():
    wide, plan = isoflop.transform(
        FromFloats(gpt2()), isoflop.SparseWide(0.75), example_inputs=(1, 6)
    )
    optimizer = torch.optim.AdamW(wide.parameters())
    isoflop.sparsify(wide, optimizer, "static", plan, total_steps=10)
    wide.eval()
    frozen = freeze(wide, example_inputs=(1, 6))
    assert count(frozen, SparseConv1D) == len(plan.sparse_layers) == 8
    assert_same(frozen, wide, 3, 6)


def test_folding_and_fusing_change_no_zeros():
    model = mask_layers(disturb(VISION["resnet18"]()))
    frozen = freeze(model, example_inputs=(1, 3, 64, 64))
    for path, module in frozen.named_modules():
        if isinstance(module, SparseLayer):
            assert torch.equal(module.mask(), model.get_submodule(path).weight_mask)
            assert not module.values.requires_grad


def test_dense_layers_stay_dense():
    model = disturb(VISION["resnet18"]()).eval()
    set_mask(model.layer1[0].conv1, "weight", torch.rand(64, 64, 3, 3) < 0.5)
    frozen = freeze(model, example_inputs=(1, 3, 64, 64))
    assert count(frozen, SparseConv2d) == 1
    assert count(frozen, nn.BatchNorm2d) == 0
    assert frozen.get_submodule("layer1.0.conv1").activation == "relu"
    assert_same(frozen, model, 2, 3, 64, 64)


def test_layers_that_are_sparse_already():
    model = mask_layers(disturb(VISION["resnet18"]()))
    frozen = freeze(model, example_inputs=(1, 3, 64, 64))
    compressed = copy.deepcopy(model)
    conv = compressed.layer1[0].conv1
    compressed.layer1[0].conv1 = SparseConv2d.from_dense(conv, conv.weight_mask)
    again = freeze(compressed, example_inputs=(1, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), frozen(x))


def test_blocks_are_read_as_blocks():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    set_mask(
        model[0],
        "weight",
        (torch.rand(2, 1, 4, 3, 3) < 0.5).expand(2, 4, 4, 3, 3).reshape(8, 4, 3, 3),
    )
    set_mask(model[2], "weight", torch.rand(4, 8, 3, 3) < 0.5)
    frozen = freeze(model, example_inputs=(1, 4, 8, 8))
    assert [m.index.rows for m in frozen.modules() if isinstance(m, SparseLayer)] == [4, 1]
    assert_same(frozen, model, 2, 4, 8, 8)


class Branches(nn.Module):
    """What must not be folded or fused: values used twice, layers called twice, broadcasting."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.shared_norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x, scale=None):
        y = self.conv(x)
        z = self.norm(y) + torch.relu(y)
        z = self.shared_norm(self.shared(z)) + self.shared(x)
        z = z + self.gate(x.mean((2, 3), keepdim=True))
        return z if scale is None else z * scale


def test_what_is_used_twice_is_not_folded():
    model = mask_layers(disturb(Branches()))
    frozen = freeze(model, example_inputs=(1, 4, 8, 8))
    assert count(frozen, nn.BatchNorm2d) == 2
    assert {m.activation for m in frozen.modules() if isinstance(m, SparseLayer)} == {"none"}
    assert_same(frozen, model, 2, 4, 8, 8)


class InPlace(nn.Module):
    """Changes what a layer has read before it adds the layer's output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        x.mul_(-2)
        return torch.relu(y + x)


def test_what_changes_in_place_is_not_fused():
    model = mask_layers(InPlace())
    frozen = freeze(model, example_inputs=(3, 6))
    assert count(frozen, SparseLinear) == 2
    assert_same(frozen, model, 5, 6)


class Branching(nn.Module):
    """Cannot be traced, as it looks at a value."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.norm = self.twice[1]

    def forward(self, x):
        x = self.features(x)
        if x.sum() > 1e9:
            return x
        return self.norm(self.twice(x))


def test_models_that_cannot_be_traced():
    model = disturb(Branching()).eval()
    set_mask(model.features[0], "weight", torch.rand(8, 4, 3, 3) < 0.5)
    frozen = frozen_dense(model, example_inputs=torch.randn(1, 4, 8, 8))
    assert isinstance(frozen, Branching)
    assert count(frozen, nn.BatchNorm2d) == 1
    assert_same(frozen, model, 2, 4, 8, 8)


def test_dense_layout():
    model = mask_layers(disturb(VISION["resnet18"]()))
    frozen = frozen_dense(model, example_inputs=(1, 3, 64, 64))
    assert count(frozen, SparseLayer) == count(frozen, nn.BatchNorm2d) == 0
    assert not list(named_masks(frozen))
    zeros = frozen.get_parameter("layer1.0.conv1.weight").detach() == 0
    assert torch.equal(zeros, ~model.get_buffer("layer1.0.conv1.weight_mask"))
    assert_same(frozen, model, 2, 3, 64, 64)


def test_linear_layers_with_norms():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 8), nn.SiLU())
    mask_layers(disturb(model))
    frozen = freeze(model, example_inputs=(2, 6))
    assert count(frozen, nn.BatchNorm1d) == 0
    assert [m.activation for m in frozen.modules() if isinstance(m, SparseLayer)] == [
        "gelu",
        "silu",
    ]
    assert_same(frozen, model, 5, 6)
    # Over sequences, BatchNorm1d normalises another dimension.
    sequences = mask_layers(disturb(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))))
    frozen = freeze(sequences, example_inputs=(2, 8, 6))
    assert count(frozen, nn.BatchNorm1d) == 1
    assert_same(frozen, sequences, 3, 8, 6)


def test_wrong_inputs():
    with pytest.raises(InputError):
        freeze(nn.Linear(2, 2), example_inputs="x")
