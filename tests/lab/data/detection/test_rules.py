import pytest
import torch

from isoflop.errors import IsoflopError
from isoflop.lab.data.detection import rules
from isoflop.lab.models import detector
from isoflop.model_specs import build_model

SPEC = "isoflop:retinanet_resnet18_cifar"
SIZE = (64, 96)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = build_model(SPEC, 4, base_width=4)
    # Else all scores are near 0.01, and nothing would be found.
    bias = network.get_parameter("head.classification_head.cls_logits.bias")
    torch.nn.init.normal_(bias, -2.0, 1.0)
    return network


def around(network):
    """Return torchvision's detector, which takes the images as they are."""
    return detector(
        network,
        min_size=SIZE[0],
        max_size=SIZE[1],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )


def targets():
    return [
        {
            "boxes": torch.tensor([[4.0, 8.0, 30.0, 40.0], [50.0, 10.0, 90.0, 60.0]]),
            "labels": torch.tensor([3, 0]),
            "canvas": SIZE,
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "canvas": SIZE},
    ]


def test_loss_is_that_of_torchvisions_detector(network):
    images = torch.rand(2, 3, *SIZE)
    network.train()
    ours = rules.loss(SPEC, network(images), targets())
    losses = around(network).train()(list(images), targets())
    torch.testing.assert_close(ours, losses["classification"] + losses["bbox_regression"])
    ours.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_loss_of_a_batch_is_the_mean_of_those_of_its_images(network):
    network.eval()
    outputs = network(torch.rand(2, 3, *SIZE))
    parts = [
        rules.loss(SPEC, {k: v[i : i + 1] for k, v in outputs.items()}, targets()[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(rules.loss(SPEC, outputs, targets()), torch.stack(parts).mean())


@torch.no_grad()
def test_detections_are_those_of_torchvisions_detector(network):
    images = torch.rand(1, 3, *SIZE)
    (expected,) = around(network).eval()(list(images))
    ours = rules.detections(SPEC, network.eval()(images), SIZE, SIZE)
    assert len(expected["boxes"]) == 300
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value)


@torch.no_grad()
def test_boxes_do_not_reach_into_padding(network):
    ours = rules.detections(SPEC, network.eval()(torch.rand(1, 3, *SIZE)), SIZE, (50, 70))
    assert ours["boxes"][:, 2].max() <= 70
    assert ours["boxes"][:, 3].max() <= 50


def test_other_models_are_refused():
    with pytest.raises(IsoflopError, match="no network for detection"):
        rules.loss("isoflop:resnet18", {}, targets())
