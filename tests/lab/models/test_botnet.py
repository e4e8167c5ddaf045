import pytest
import torch
from torch import nn

import isoflop.flops.table
from isoflop.errors import InputError, IsoflopError
from isoflop.lab.models import PixelAttention, botnet50, botnet50_cifar
from isoflop.model_specs import build_model


def attentions(model):
    return [m for m in model.modules() if isinstance(m, PixelAttention)]


# Of each size: pixels, and the blocks whose attention sees them.
SIZES = {"botnet50": [14, 7, 7], "botnet50_cifar": [8, 4, 4]}


@pytest.mark.parametrize(
    ("name", "resnet", "macs", "count"),
    [
        ("botnet50", "resnet50", 4_021_346_304, 20_852_008),
        ("botnet50_cifar", "resnet50_cifar", 1_265_639_424, 18_994_084),
    ],
)
def test_cost_follows_from_that_of_the_resnet(name, resnet, macs, count):
    models = {key: build_model(f"isoflop:{key}", meta=True) for key in (name, resnet)}
    sizes = SIZES[name]
    image = 32 if name.endswith("cifar") else 224
    table = {key: isoflop.profile(model, (1, 3, image, image)) for key, model in models.items()}
    parameters = {key: sum(p.numel() for p in m.parameters()) for key, m in models.items()}
    # Three 1×1 convolutions for a 3×3 one; tables of 2n-1 offsets of size 128 for either axis.
    tables = sum(2 * (2 * size - 1) * 128 for size in sizes)
    assert parameters[name] == parameters[resnet] + 3 * (3 - 9) * 512**2 + tables == count
    convolutions = 9 * 512**2 * 3 * sizes[-1] ** 2
    attention = sum(3 * size**2 * 512**2 + 2 * size**4 * 512 + 2 * size**3 * 512 for size in sizes)
    assert table[name].macs == table[resnet].macs - convolutions + attention == macs


@pytest.mark.parametrize("name", SIZES)
def test_attention_is_in_the_last_stage_only(name):
    model = build_model(f"isoflop:{name}", meta=True)
    assert [(m.rows.shape[0] + 1) // 2 for m in attentions(model)] == SIZES[name]
    stage = model.get_submodule("layer4" if name == "botnet50" else "stages.3")
    assert attentions(stage) == attentions(model)
    kernels = [m.kernel_size for m in stage.modules() if isinstance(m, nn.Conv2d)]
    assert set(kernels) == {(1, 1)}


def test_position_tables_are_not_counted_as_weights_of_a_layer():
    model = build_model("isoflop:botnet50_cifar", meta=True)
    macs = isoflop.profile(model, (1, 3, 32, 32)).by_parameter()
    tables = [name for name in macs if name.endswith((".rows", ".columns"))]
    assert len(tables) == 6
    assert all(macs[name] % model.get_parameter(name).numel() for name in tables)


def test_options_last_map_and_gradients():
    model = botnet50_cifar(num_classes=7, in_channels=1, base_width=4, image_size=16)
    shapes = []
    model.get_submodule("stages").register_forward_hook(
        lambda _module, _args, out: shapes.append(out.shape)
    )
    nn.init.ones_(model.get_parameter("stages.3.2.bn3.weight"))  # lets gradients through
    scores = model(torch.randn(2, 1, 16, 16))
    assert shapes == [(2, 128, 2, 2)]
    scores.square().mean().backward()
    assert scores.shape == (2, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None and p.grad.any() for p in attentions(model)[-1].parameters())


def test_imagenet_model_runs():
    model = botnet50(num_classes=5, in_channels=1, image_size=32)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(("build", "size"), [(botnet50, 208), (botnet50_cifar, 36)])
def test_image_size_must_halve(build, size):
    with torch.device("meta"), pytest.raises(IsoflopError, match=f"{size} must be a multiple of"):
        build(image_size=size)


def test_other_image_size_than_built_for():
    model = build_model("isoflop:botnet50_cifar", base_width=4)
    with pytest.raises(InputError, match="8×8 pixels, but got 16×16"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(InputError, match="8×8 pixels, but got 16×16"):
        isoflop.profile(model, (1, 3, 64, 64))
