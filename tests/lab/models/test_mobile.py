import pytest
import timm
import torch

import isoflop.flops.table
from isoflop.model_specs import build_model

# The library's model, and the module whose output is the last feature map.
LIBRARY = {
    "mobilenet_v2_cifar": ("mobilenetv2_100", "bn2"),
    "mobilevit_s_cifar": ("mobilevit_s", "final_conv"),
}


@pytest.mark.parametrize(
    ("name", "macs", "count"),
    [
        ("mobilenet_v2_cifar", 88_091_648, 2_351_972),
        ("mobilevit_s_cifar", 441_688_576, 5_001_732),
    ],
)
def test_cost(name, macs, count):
    model = build_model(f"isoflop:{name}", meta=True)
    assert isoflop.profile(model, (1, 3, 32, 32)).macs == macs
    assert sum(p.numel() for p in model.parameters()) == count


def test_mobilenet_v2_costs_what_its_published_table_says():
    size, width, macs = 32, 32, 32 * 32 * 27 * 32
    # Expansion, width, blocks and stride (Sandler et al. 2018, table 2).
    for expansion, out, blocks, stride in [
        (1, 16, 1, 1),
        (6, 24, 2, 1),  # 2 in the paper, for larger images
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for block in range(blocks):
            inner = expansion * width
            macs += size**2 * width * inner * (expansion > 1)
            size //= stride if block == 0 else 1
            macs += size**2 * inner * (9 + out)
            width = out
    macs += size**2 * width * 1280 + 1280 * 100
    assert size == 4
    model = build_model("isoflop:mobilenet_v2_cifar", meta=True)
    assert isoflop.profile(model, (1, 3, 32, 32)).macs == macs


@pytest.mark.parametrize("name", LIBRARY)
def test_late_stages_see_what_the_librarys_model_sees_in_a_larger_image(name):
    ours = build_model(f"isoflop:{name}", meta=True)
    with torch.device("meta"):
        theirs = timm.create_model(LIBRARY[name][0], pretrained=False, num_classes=100)
    small = isoflop.profile(ours, (1, 3, 32, 32)).by_module()
    large = isoflop.profile(theirs, (1, 3, 128, 128)).by_module()
    late = [path for path in small if path.startswith(("stages", "blocks")) and path[7:8] >= "2"]
    assert len(late) > 50
    assert {path: small[path] for path in late} == {path: large[path] for path in late}


@pytest.mark.parametrize("name", LIBRARY)
def test_options_last_map_and_gradients(name):
    model = build_model(f"isoflop:{name}", 7, in_channels=1)
    shapes = []
    last = model.get_submodule(LIBRARY[name][1])
    last.register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[2:])))
    scores = model(torch.randn(2, 1, 32, 32))
    assert shapes == [(4, 4)]
    assert scores.shape == (2, 7)
    scores.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "norm", "blocks"),
    [
        ("mobilenet_v2_cifar", "bn3", 10),
        ("mobilevit_s_cifar", "bn", 2),
    ],
)
def test_residual_blocks_begin_as_their_shortcuts(name, norm, blocks):
    model = build_model(f"isoflop:{name}")
    scales = {
        path: float(module.weight.detach().abs().sum())
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    zero = [path for path, scale in scales.items() if scale == 0]
    assert len(zero) == blocks
    assert all(path.endswith(f".{norm}") for path in zero)
