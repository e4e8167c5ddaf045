"""RetinaNet in two parts: the network, and the detector around it.

torchvision's RetinaNet ends in non-maximum suppression, whose course depends on the values of
tensors: no trace can follow it. All weights lie before that, in the network, which is what is
transformed and counted.
"""

from typing import Any

from torch import Tensor, nn

from isoflop.lab.models.backbones import backbone_layers, map_shapes
from isoflop.lab.models.resnet import resnet18_cifar
from isoflop.lab.models.resnet_imagenet import torchvision_resnet
from isoflop.model_registry import register_model
from isoflop.optional import require

PYRAMID_WIDTH = 256
ANCHORS = 9
"""Anchors per pixel of each map of the pyramid: three sizes times three aspect ratios."""
ANCHOR_STRIDES = 4
"""Side of the smallest anchor of a map, in strides of the map (Lin et al. 2017)."""
LEVELS = 5
"""Maps of the pyramid."""


class DetectionNetwork(nn.Module):
    """A backbone with a feature pyramid, and the head that runs on each of its maps.

    Args:
        backbone: Maps images to a dict of feature maps.
        head: Maps the list of feature maps to a dict of predictions for each anchor.
        stride: Pixels of the image for each of the first feature map, in each direction; each further
            map halves the resolution.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, stride: int = 8) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.stride = stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict a class and a box for each anchor.

        Args:
            images: Normalised images of equal size, `[batch, channels, height, width]`.

        Returns:
            `cls_logits` `[batch, anchors, classes]` and `bbox_regression` `[batch, anchors, 4]`.
        """
        return self.head(list(self.backbone(images).values()))


def detector(network: DetectionNetwork, **options: Any) -> Any:
    """Put a network, transformed or not, into torchvision's RetinaNet.

    The network itself is used, not a copy, so an optimizer and masks of its weights stay valid.

    Args:
        network: The network, such as `isoflop.lab.models.build_model("isoflop:retinanet_resnet18")`.
        **options: Options of `torchvision.models.detection.RetinaNet`, such as `min_size`.

    Returns:
        The detector. It takes a list of images `[channels, height, width]` in [0, 1] of any sizes;
        in training mode their boxes and labels too, and returns the losses; in evaluation mode it
        returns the boxes, scores and labels that it found.
    """
    detection = require("torchvision.models.detection", "vision")
    anchor_utils = require("torchvision.models.detection.anchor_utils", "vision")
    smallest = (ANCHOR_STRIDES * network.stride * 2**level for level in range(LEVELS))
    sizes = tuple(tuple(int(size * 2 ** (i / 3)) for i in range(3)) for size in smallest)
    return detection.RetinaNet(
        network.backbone,
        num_classes=None,  # which it needs only to build a head of its own
        head=network.head,
        anchor_generator=anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * LEVELS),
        **options,
    )


@register_model("retinanet_resnet18", input_shape=(3, 800, 800), backbone="backbone.body")
def retinanet_resnet18(
    num_classes: int = 91, in_channels: int = 3, backbone: nn.Module | None = None
) -> DetectionNetwork:
    """RetinaNet (Lin et al. 2017) on ResNet-18 for COCO, without what follows the network.

    The parts are torchvision's, put together as in its `retinanet_resnet50_fpn`, except that the
    BatchNorms of the backbone are ordinary ones: frozen ones, which are usual for backbones that
    were trained before, would not let it be trained from scratch. The weights of a ResNet-18 fit
    `backbone.body`. `detector` makes it complete.

    Args:
        num_classes: Number of labels.
        in_channels: Channels of the images, if there is no backbone.
        backbone: A ResNet-18, transformed or not, whose layers are used up to the last stage; by
            default a new one.
    """
    return _retinanet(
        backbone or torchvision_resnet("resnet18", in_channels=in_channels),
        num_classes,
        PYRAMID_WIDTH,
    )


@register_model("retinanet_resnet18_cifar", input_shape=(3, 64, 64), backbone="backbone.body")
def retinanet_resnet18_cifar(
    num_classes: int = 10,
    in_channels: int = 3,
    base_width: int = 64,
    backbone: nn.Module | None = None,
) -> DetectionNetwork:
    """RetinaNet for small images: ResNet-18 with a 3×3 stem, so a quarter of the strides and anchors.

    Args:
        num_classes: Number of labels.
        in_channels: Channels of the images, if there is no backbone.
        base_width: Channels of the first stage, if there is no backbone; the pyramid and the head
            have four times as many.
        backbone: A `resnet18_cifar`; see `retinanet_resnet18`.
    """
    return _retinanet(
        backbone or resnet18_cifar(in_channels=in_channels, base_width=base_width),
        num_classes,
        4 * base_width,
    )


def _retinanet(classifier: nn.Module, num_classes: int, width: int) -> DetectionNetwork:
    retinanet = require("torchvision.models.detection.retinanet", "vision")
    backbone_utils = require("torchvision.models.detection.backbone_utils", "vision")
    pyramid = require("torchvision.ops.feature_pyramid_network", "vision")
    layers = backbone_layers(classifier)
    shapes = map_shapes(layers)
    stages = ("layer2", "layer3", "layer4")
    backbone = backbone_utils.BackboneWithFPN(
        layers,
        return_layers={stage: str(index) for index, stage in enumerate(stages)},
        in_channels_list=[shapes[stage].channels for stage in stages],
        out_channels=width,
        extra_blocks=pyramid.LastLevelP6P7(width, width),
    )
    head = retinanet.RetinaNetHead(width, ANCHORS, num_classes)
    return DetectionNetwork(backbone, head, shapes["layer2"].stride)
