"""RetinaNet in two parts: the network, and the detector around it.

torchvision's RetinaNet ends in non-maximum suppression, whose course depends on the values of
tensors: no trace can follow it. All weights lie before that, in the network, which is what is
transformed and counted.
"""

from typing import Any

from torch import Tensor, nn

from isoflop.models.extras import require
from isoflop.models.registry import register_model
from isoflop.models.resnet_imagenet import torchvision_resnet

PYRAMID_WIDTH = 256
ANCHORS = 9
"""Anchors per pixel of each map of the pyramid: three sizes times three aspect ratios."""


class DetectionNetwork(nn.Module):
    """A backbone with a feature pyramid, and the head that runs on each of its maps.

    Args:
        backbone: Maps images to a dict of feature maps.
        head: Maps the list of feature maps to a dict of predictions for each anchor.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

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
        network: The network, such as `isoflop.models.build_model("isoflop:retinanet_resnet18")`.
        **options: Options of `torchvision.models.detection.RetinaNet`, such as `min_size`.

    Returns:
        The detector. It takes a list of images `[channels, height, width]` in [0, 1] of any sizes;
        in training mode their boxes and labels too, and returns the losses; in evaluation mode it
        returns the boxes, scores and labels that it found.
    """
    detection = require("torchvision.models.detection", "vision")
    # It needs the number of classes only to build a head of its own.
    return detection.RetinaNet(network.backbone, num_classes=None, head=network.head, **options)


@register_model("retinanet_resnet18", input_shape=(3, 800, 800))
def retinanet_resnet18(num_classes: int = 91, in_channels: int = 3) -> DetectionNetwork:
    """RetinaNet (Lin et al. 2017) on ResNet-18 for COCO, without what follows the network.

    The parts are torchvision's, put together as in its `retinanet_resnet50_fpn`, except that the
    BatchNorms of the backbone are ordinary ones: frozen ones, which are usual for backbones that
    were trained before, would not let it be trained from scratch. The weights of a ResNet-18 fit
    `backbone.body`. `detector` makes it complete.

    Args:
        num_classes: Number of labels, the background included.
        in_channels: Channels of the images.
    """
    retinanet = require("torchvision.models.detection.retinanet", "vision")
    backbone_utils = require("torchvision.models.detection.backbone_utils", "vision")
    pyramid = require("torchvision.ops.feature_pyramid_network", "vision")
    backbone = backbone_utils.BackboneWithFPN(
        torchvision_resnet("resnet18", in_channels=in_channels),
        return_layers={"layer2": "0", "layer3": "1", "layer4": "2"},
        in_channels_list=[128, 256, 512],
        out_channels=PYRAMID_WIDTH,
        extra_blocks=pyramid.LastLevelP6P7(PYRAMID_WIDTH, PYRAMID_WIDTH),
    )
    head = retinanet.RetinaNetHead(PYRAMID_WIDTH, ANCHORS, num_classes)
    return DetectionNetwork(backbone, head)
