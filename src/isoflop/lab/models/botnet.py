"""BoTNet-50: ResNet-50 with self-attention in its last stage (Srinivas et al. 2021).

In the three bottleneck blocks of that stage (c5), attention takes the place of the 3×3 convolution;
in the first block, which halves the resolution, 2×2 average pooling follows it. These are the plain
BoTNets, in which that stage has the stride 2 of the ResNet. The variant BoTNet-S1, which its authors
prefer for image classification, has stride 1 there instead; the paper on Iso-FLOP transformations
names no variant.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.lab.models.attention import PixelAttention
from isoflop.lab.models.resnet import Bottleneck, ResNet
from isoflop.lab.models.resnet_imagenet import torchvision_resnet
from isoflop.model_registry import register_model

HEADS = 4


def _attend(stage: Iterable[Any], image_size: int, reduction: int) -> None:
    """Replace the 3×3 convolution of each bottleneck block of a stage by attention.

    Args:
        stage: Blocks of which the first has stride 2; their 3×3 convolution is `conv2`.
        image_size: Height and breadth of the images.
        reduction: By how much the stage's input is smaller than the image.

    Raises:
        IsoflopError: The images cannot be halved as often as the network does.
    """
    if image_size % (2 * reduction):
        raise IsoflopError(f"The image size {image_size} must be a multiple of {2 * reduction}.")
    size = image_size // reduction
    for block in stage:
        conv = block.conv2
        block.conv2 = PixelAttention(conv.in_channels, size, size, HEADS)
        if conv.stride == (2, 2):
            block.conv2 = nn.Sequential(block.conv2, nn.AvgPool2d(2))
            size //= 2


@register_model("botnet50", input_shape=(3, 224, 224))
def botnet50(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """BoTNet-50 for ImageNet: torchvision's ResNet-50 with self-attention in its last stage.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        image_size: Height and breadth of the images, which the relative positions fix.
    """
    model = torchvision_resnet("resnet50", num_classes, in_channels)
    _attend(model.layer4, image_size, reduction=16)
    return model


@register_model("botnet50_cifar", input_shape=(3, 32, 32))
def botnet50_cifar(
    num_classes: int = 100,
    in_channels: int = 3,
    base_width: int = 64,
    zero_init_last: bool = True,
    image_size: int = 32,
) -> ResNet:
    """BoTNet-50 for 32×32 images: 3×3 stem, no max-pooling, attention on 8×8 and 4×4 pixels.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        base_width: Width of the blocks of the first stage.
        zero_init_last: Start each block's last BatchNorm at zero.
        image_size: Height and breadth of the images, which the relative positions fix.
    """
    blocks = (3, 4, 6, 3)
    model = ResNet(num_classes, in_channels, base_width, blocks, zero_init_last, Bottleneck)
    _attend(model.stages.get_submodule("3").children(), image_size, reduction=4)
    return model
