"""Networks that label every pixel."""

from typing import Any

from torch import nn

from isoflop.lab.models.backbones import STAGES, StageMaps, backbone_layers, dilate, map_shapes
from isoflop.lab.models.resnet import resnet18_cifar
from isoflop.lab.models.resnet_imagenet import torchvision_resnet
from isoflop.model_registry import register_model
from isoflop.optional import require

DECODER_WIDTH = 256
ATROUS_RATES = (12, 24, 36)
"""Dilations of the decoder's pyramid at the strides of an ordinary ResNet."""


class Encoder(StageMaps):
    """A backbone as the decoders of segmentation-models-pytorch want it.

    The last stage is dilated instead of strided, so that its maps are as large as those of the stage
    before.

    Args:
        layers: The layers of a ResNet, which are changed in place.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        shapes = map_shapes(layers)
        last = layers.get_submodule(STAGES[-1])
        dilate(last, shapes[STAGES[-1]].stride // shapes[STAGES[-2]].stride)
        super().__init__(layers)
        self.output_stride = shapes[STAGES[-2]].stride


@register_model("deeplabv3plus_resnet18", input_shape=(3, 512, 1024), backbone="encoder")
def deeplabv3plus_resnet18(
    num_classes: int = 19, in_channels: int = 3, backbone: nn.Module | None = None
) -> nn.Module:
    """DeepLabV3+ (Chen et al. 2018) on ResNet-18 for Cityscapes, from segmentation-models-pytorch.

    Images `[batch, in_channels, height, width]`, of sizes that 16 divides, become class scores
    `[batch, num_classes, height, width]`. The weights of a ResNet-18 fit its `encoder`.

    Args:
        num_classes: Number of labels.
        in_channels: Channels of the images, if there is no backbone.
        backbone: A ResNet-18, transformed or not, whose layers are used up to the last stage, which is
            dilated in place; by default a new one.
    """
    classifier = backbone or torchvision_resnet("resnet18", in_channels=in_channels)
    return _deeplabv3plus(classifier, num_classes, DECODER_WIDTH)


@register_model("deeplabv3plus_resnet18_cifar", input_shape=(3, 64, 64), backbone="encoder")
def deeplabv3plus_resnet18_cifar(
    num_classes: int = 11,
    in_channels: int = 3,
    base_width: int = 64,
    backbone: nn.Module | None = None,
) -> nn.Module:
    """DeepLabV3+ for small images: ResNet-18 with a 3×3 stem, so a quarter of the strides.

    Args:
        num_classes: Number of labels.
        in_channels: Channels of the images, if there is no backbone.
        base_width: Channels of the first stage, if there is no backbone; the decoder has four times
            as many.
        backbone: A `resnet18_cifar`; see `deeplabv3plus_resnet18`.
    """
    classifier = backbone or resnet18_cifar(in_channels=in_channels, base_width=base_width)
    return _deeplabv3plus(classifier, num_classes, 4 * base_width)


def _deeplabv3plus(classifier: nn.Module, num_classes: int, width: int) -> nn.Module:
    models = require("segmentation_models_pytorch", "vision")
    decoders = require("segmentation_models_pytorch.decoders.deeplabv3.decoder", "vision")
    layers = backbone_layers(classifier)
    shapes = map_shapes(layers)
    model: Any = models.DeepLabV3Plus(
        encoder_name="resnet18",
        encoder_weights=None,  # else they would be downloaded
        classes=num_classes,
        decoder_channels=width,
        upsampling=shapes[STAGES[0]].stride,
    )
    model.encoder = Encoder(layers)
    # Of the maps, the decoder reads that of the first stage and that of the last.
    model.decoder = decoders.DeepLabV3PlusDecoder(
        encoder_channels=[0, 0, *(shape.channels for shape in shapes.values())],
        encoder_depth=len(STAGES) + 1,
        out_channels=width,
        atrous_rates=ATROUS_RATES,
        output_stride=16,
        aspp_separable=True,
        aspp_dropout=0.5,
    )
    model.initialize()
    return model
