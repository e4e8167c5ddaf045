"""Networks that label every pixel."""

from torch import nn

from isoflop.models.extras import require
from isoflop.models.registry import register_model


@register_model("deeplabv3plus_resnet18", input_shape=(3, 512, 1024))
def deeplabv3plus_resnet18(num_classes: int = 19, in_channels: int = 3) -> nn.Module:
    """DeepLabV3+ (Chen et al. 2018) on ResNet-18 for Cityscapes, from segmentation-models-pytorch.

    Images `[batch, in_channels, height, width]`, of sizes that 16 divides, become class scores
    `[batch, num_classes, height, width]`. The weights of a ResNet-18 fit its `encoder`.
    """
    models = require("segmentation_models_pytorch", "vision")
    return models.DeepLabV3Plus(
        encoder_name="resnet18",
        encoder_weights=None,  # else they would be downloaded
        in_channels=in_channels,
        classes=num_classes,
    )
