import pytest
import timm
import torch
from torch import nn

import isoflop
from isoflop.errors import IsoflopError
from isoflop.flops.trace import profile
from isoflop.lab.models import detector
from isoflop.lab.models.backbones import MapShape, backbone_layers, dilate, map_shapes
from isoflop.lab.models.detection import DetectionNetwork
from isoflop.masks import set_mask
from isoflop.model_registry import MODELS
from isoflop.model_specs import build_model

NETWORKS = {
    "isoflop:retinanet_resnet18": "backbone.body",
    "isoflop:deeplabv3plus_resnet18": "encoder",
}
SMALL = [f"{name}_cifar" for name in NETWORKS]


def meta(spec, **options):
    with torch.device("meta"):
        return build_model(spec, **options)


def test_layers_keep_their_names():
    own = backbone_layers(meta("isoflop:resnet18"))
    others = (meta("torchvision:resnet18"), timm.create_model("resnet18"))
    names = [name for name, _ in own.named_parameters()]
    assert names[0] == "conv1.weight"
    assert names[-1] == "layer4.1.bn2.bias"
    for other in others:
        assert [name for name, _ in backbone_layers(other).named_parameters()] == names
    small = [name for name, _ in backbone_layers(meta("isoflop:resnet18_cifar")).named_children()]
    assert small == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_shapes_of_maps():
    assert map_shapes(backbone_layers(meta("isoflop:resnet18"))) == {
        "layer1": MapShape(64, 4),
        "layer2": MapShape(128, 8),
        "layer3": MapShape(256, 16),
        "layer4": MapShape(512, 32),
    }
    narrow = meta("isoflop:resnet50_cifar", base_width=4, in_channels=2)
    assert list(map_shapes(backbone_layers(narrow)).values()) == [
        MapShape(16 * 2**i, 2**i) for i in range(4)
    ]


@pytest.mark.parametrize("spec", ["isoflop:resnet8_digits", "torchvision:mobilenet_v2"])
def test_other_networks_are_refused(spec):
    with pytest.raises(IsoflopError, match="no ResNet of four stages"):
        backbone_layers(meta(spec))


def test_models_without_a_backbone_take_none():
    with pytest.raises(IsoflopError, match="does not take backbone"):
        build_model("isoflop:resnet18", backbone=nn.Identity())


def test_dilation_keeps_the_size_of_maps():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(1, 2, 9, 12)
    before = conv(x)
    dilate(conv, 2)
    assert conv(x).shape == (1, 3, 9, 12)
    reference = nn.functional.conv2d(x, conv.weight, conv.bias, padding=2, dilation=2)
    assert torch.equal(conv(x), reference)
    assert before.shape == (1, 3, 5, 6)


@pytest.mark.parametrize("spec", SMALL)
def test_network_uses_the_layers_of_a_wide_classifier(spec):
    torch.manual_seed(0)
    classifier, _ = isoflop.transform(
        build_model("isoflop:resnet18_cifar", 3, in_channels=2, base_width=4),
        isoflop.SparseWide(sparsity=0.75),
        example_inputs=(1, 2, 16, 16),
    )
    network = build_model(spec, 5, base_width=4, backbone=classifier)
    path = MODELS.get(spec.removeprefix("isoflop:")).backbone
    assert path is not None
    used = dict(network.get_submodule(path).named_parameters())
    assert used["layer4.1.conv2.weight"].shape == (64, 64, 3, 3)
    assert {id(p) for p in used.values()} == {
        id(p) for name, p in classifier.named_parameters() if not name.startswith("head")
    }
    outputs = network.eval()(torch.randn(2, 2, 32, 64))
    if isinstance(outputs, dict):
        anchors = 9 * sum(16 * 32 // 4**i for i in range(5))
        assert outputs["cls_logits"].shape == (2, anchors, 5)
        assert isinstance(network, DetectionNetwork)
        sizes = detector(network).anchor_generator.sizes
        assert [level[0] for level in sizes] == [8, 16, 32, 64, 128]
    else:
        assert outputs.shape == (2, 5, 32, 64)


@pytest.mark.parametrize(("spec", "path"), NETWORKS.items())
@pytest.mark.parametrize("exact", [True, False])
def test_flops_are_equal_at_any_resolution_if_every_layer_meets_its_budget(spec, path, exact):
    config = isoflop.SparseWide(sparsity=0.75, dense_ends=not exact)
    classifier, plan = isoflop.transform(
        meta("isoflop:resnet18"),
        config,
        example_inputs=(1, 3, 224, 224),
        scope="layers" if exact else "model",
    )
    assert abs(plan.relative_gap) <= 1e-6
    classifier.to_empty(device="cpu")
    for layer in plan.sparse_layers:
        owner, _, name = layer.parameter.rpartition(".")
        mask = torch.zeros(layer.numel, dtype=torch.bool)
        mask[: layer.nnz] = True
        set_mask(classifier.get_submodule(owner), name, mask.view(layer.shape))
    macs = []
    for network in (build_model(spec, backbone=classifier), meta(spec)):
        macs.append(profile(network, (1, 3, 512, 1024)).by_module()[path])
    if exact:
        assert macs[0] == macs[1]
    else:
        # The stem and the last layer have grown, and other layers paid for that at 224 × 224.
        assert -0.05 < macs[0] / macs[1] - 1 < -1e-4
