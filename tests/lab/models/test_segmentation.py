import socket

import torch
from torchvision.models import resnet18

import isoflop.flops.table
from isoflop.model_specs import build_model

SPEC = "isoflop:deeplabv3plus_resnet18"


def test_cost():
    model = build_model(SPEC, meta=True)
    table = isoflop.profile(model, (1, 3, 512, 1024))
    assert table.macs == 36_646_813_696
    assert sum(p.numel() for p in model.parameters()) == 12_333_923
    # The first three stages of the encoder are those of any ResNet-18; the last is dilated.
    with torch.device("meta"):
        reference = isoflop.profile(resnet18(), (1, 3, 512, 1024)).by_module()
    macs = table.by_module()
    for stage in ("conv1", "layer1", "layer2", "layer3"):
        assert macs[f"encoder.{stage}"] == reference[stage]
    assert macs["encoder.layer4"] == 4 * reference["layer4"]


def test_options_and_gradients_without_a_network(monkeypatch):
    def offline(*_args):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(socket.socket, "connect", offline)
    model = build_model(SPEC, 5, in_channels=2)
    scores = model(torch.randn(2, 2, 32, 64))
    assert scores.shape == (2, 5, 32, 64)
    scores.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
