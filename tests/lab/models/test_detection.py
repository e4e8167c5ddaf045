import torch
from torch import nn
from torchvision.models import detection, resnet18

import isoflop.flops.table
from isoflop.lab.models import detector
from isoflop.lab.models.detection import DetectionNetwork
from isoflop.model_specs import build_model

SPEC = "isoflop:retinanet_resnet18"


def test_cost_is_that_of_torchvisions_parts():
    model = build_model(SPEC, meta=True)
    assert isoflop.profile(model, (1, 3, 800, 800)).macs == 120_820_437_248
    backbone = sum(p.numel() for p in resnet18().parameters()) - 513 * 1000
    pyramid = (128 + 256 + 512 + 3) * 256 + 5 * (9 * 256 + 1) * 256
    head = 8 * (9 * 256 + 1) * 256 + (9 * 256 + 1) * 9 * (91 + 4)
    count = sum(p.numel() for p in model.parameters())
    assert count == backbone + pyramid + head == 21_048_471


def test_network_predicts_for_every_anchor():
    model = build_model(SPEC, 7, in_channels=2)
    out = model(torch.randn(2, 2, 64, 64))
    anchors = 9 * sum(size**2 for size in (8, 4, 2, 1, 1))
    assert out["cls_logits"].shape == (2, anchors, 7)
    assert out["bbox_regression"].shape == (2, anchors, 4)


def test_backbone_can_be_trained_and_takes_the_weights_of_a_classifier():
    model = build_model(SPEC, 7)
    norms = [m for m in model.modules() if "BatchNorm" in type(m).__name__]
    assert len(norms) == 20
    assert all(type(m) is nn.BatchNorm2d for m in norms)
    assert all(p.requires_grad for p in model.parameters())
    missing, unexpected = model.get_submodule("backbone.body").load_state_dict(
        resnet18().state_dict(), strict=False
    )
    assert (missing, unexpected) == ([], ["fc.weight", "fc.bias"])


def test_detector_trains_and_detects():
    torch.manual_seed(0)
    network = build_model(SPEC, 7)
    assert isinstance(network, DetectionNetwork)
    model = detector(network, min_size=64, max_size=96, score_thresh=0.0, detections_per_img=5)
    assert isinstance(model, detection.RetinaNet)
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
    targets = [
        {"boxes": torch.tensor([[4.0, 8.0, 30.0, 40.0]]), "labels": torch.tensor([3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    losses = model.train()(images, targets)
    assert losses.keys() == {"classification", "bbox_regression"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    for found in model.eval()(images):
        assert found["boxes"].shape == (5, 4)
        assert found["scores"].shape == found["labels"].shape == (5,)


@torch.no_grad()
def test_detector_uses_the_network_itself():
    network = build_model(SPEC, 7)
    assert isinstance(network, DetectionNetwork)
    model = detector(network)
    assert {id(p) for p in model.parameters()} == {id(p) for p in network.parameters()}
    network.eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model.head(list(model.backbone(x).values()))
    torch.testing.assert_close(network(x), dict(expected))


def test_anchors_of_the_head_are_those_of_the_detector():
    with torch.device("meta"):
        network = build_model(SPEC, 7)
        assert isinstance(network, DetectionNetwork)
        model = detector(network)
    assert set(model.anchor_generator.num_anchors_per_location()) == {9}
