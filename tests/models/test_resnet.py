import pytest
import torch

import isoflop.flops
from isoflop.models import INPUT_SHAPES, MODELS, BasicBlock


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_cifar_resnet18_has_the_published_cost():
    model = MODELS.get("resnet18_cifar")(num_classes=100)
    assert isoflop.flops.profile(model, (1, 3, 32, 32)).macs == 555_468_800
    assert parameters(model) == 11_220_132


def test_cifar_resnet34_parameters():
    with torch.device("meta"):
        model = MODELS.get("resnet34_cifar")(num_classes=100)
    assert parameters(model) == 21_328_292


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_maps_its_own_input_to_classes(name):
    shape = INPUT_SHAPES[name]
    model = MODELS.get(name)(num_classes=7, base_width=4)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("zero_init", [True, False])
def test_last_norm_of_each_block_starts_at_zero_if_asked(zero_init):
    model = MODELS.get("resnet18_cifar")(base_width=4, zero_init_last=zero_init)
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 8
    for block in blocks:
        assert bool((block.bn2.weight == 0).all()) is zero_init
        assert (block.bn1.weight == 1).all()


def test_kaiming_fan_out():
    torch.manual_seed(0)
    model = MODELS.get("resnet18_cifar")()
    weight = model.get_parameter("stages.3.1.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_channels_and_width_are_options():
    model = MODELS.get("resnet18_cifar")(num_classes=10, in_channels=1, base_width=8)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert model.get_parameter("head.weight").shape == (10, 64)
