import pytest
import torch
import torchvision
from torch import nn

import isoflop.flops.table
from isoflop.lab.models import BasicBlock, Bottleneck
from isoflop.model_registry import MODELS
from isoflop.model_specs import build_model

BLOCKS = {"resnet18_cifar": 8, "resnet34_cifar": 16, "resnet50_cifar": 16}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "macs", "count"),
    [
        ("resnet18_cifar", 555_468_800, 11_220_132),
        ("resnet34_cifar", 1_159_448_576, 21_328_292),
        ("resnet50_cifar", 1_298_014_208, 23_705_252),
        ("resnet8_digits", 763_520, 77_754),
    ],
)
def test_cost(name, macs, count):
    model = build_model(f"isoflop:{name}", meta=True)
    assert isoflop.profile(model, (1, *MODELS.get(name).input_shape)).macs == macs
    assert parameters(model) == count


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_cost_is_torchvisions_with_another_stem(depth):
    ours = build_model(f"isoflop:resnet{depth}_cifar", meta=True)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=100)
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
    assert parameters(ours) == parameters(theirs)
    tables = [isoflop.profile(m, (1, 3, 32, 32)) for m in (ours, theirs)]
    assert tables[0].macs == tables[1].macs


@pytest.mark.parametrize("name", ["resnet8_digits", *BLOCKS])
def test_every_model_maps_its_own_input_to_classes(name):
    entry = MODELS.get(name)
    model = entry(num_classes=7, base_width=4)
    assert model(torch.randn(2, *entry.input_shape)).shape == (2, 7)


@pytest.mark.parametrize("zero_init", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_last_norm_of_each_block_starts_at_zero_if_asked(name, zero_init):
    model = MODELS.get(name)(base_width=4, zero_init_last=zero_init)
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    assert len(blocks) == BLOCKS[name]
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        for norm in block.children():
            if isinstance(norm, nn.BatchNorm2d):
                assert bool((norm.weight == 0).all()) is (zero_init and norm is last)


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_block_with_its_last_norm_at_zero_is_its_shortcut(kind):
    block = kind(8, 8 // kind.expansion)
    nn.init.zeros_(block.last_norm.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_kaiming_fan_out():
    torch.manual_seed(0)
    model = MODELS.get("resnet18_cifar")()
    weight = model.get_parameter("stages.3.1.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_channels_and_width_are_options():
    model = MODELS.get("resnet18_cifar")(num_classes=10, in_channels=1, base_width=8)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert model.get_parameter("head.weight").shape == (10, 64)
