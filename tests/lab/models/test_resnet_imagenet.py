import pytest
import torch

import isoflop.flops.table
from isoflop.model_specs import build_model


@pytest.mark.parametrize(
    ("name", "macs", "count", "blocks"),
    [
        ("resnet18", 1_814_073_344, 11_689_512, 8),
        ("resnet34", 3_663_761_408, 21_797_672, 16),
        ("resnet50", 4_089_184_256, 25_557_032, 16),
    ],
)
def test_published_cost_and_zero_init(name, macs, count, blocks):
    model = build_model(f"isoflop:{name}")
    assert isoflop.profile(model, (1, 3, 224, 224)).macs == macs
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == count
    zero = [key for key, p in parameters.items() if key.endswith(".weight") and not p.any()]
    last = "bn3" if name == "resnet50" else "bn2"
    assert len(zero) == blocks
    assert all(key.endswith(f"{last}.weight") for key in zero)


def test_options():
    torch.manual_seed(0)
    model = build_model("isoflop:resnet18", 7, in_channels=5)
    stem = model.get_parameter("conv1.weight")
    assert stem.shape == (64, 5, 7, 7)
    assert stem.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.03)
    assert model(torch.randn(2, 5, 32, 32)).shape == (2, 7)
