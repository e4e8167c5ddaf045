"""torchvision's ResNets, started as the paper starts them and for images of any channels."""

from typing import Any

from torch import nn

from isoflop.model_registry import register_model
from isoflop.optional import require


def torchvision_resnet(name: str, num_classes: int = 1000, in_channels: int = 3) -> Any:
    """Build an untrained ResNet of torchvision whose blocks begin as their shortcuts.

    Args:
        name: Its name in `torchvision.models`.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.

    Returns:
        A `torchvision.models.ResNet`.
    """
    models = require("torchvision.models", "vision")
    model = getattr(models, name)(num_classes=num_classes, zero_init_residual=True)
    if in_channels != 3:
        stem = model.conv1
        model.conv1 = nn.Conv2d(in_channels, stem.out_channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


@register_model("resnet18", input_shape=(3, 224, 224))
def resnet18(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """ResNet-18 for ImageNet (He et al. 2016), from torchvision."""
    return torchvision_resnet("resnet18", num_classes, in_channels)


@register_model("resnet34", input_shape=(3, 224, 224))
def resnet34(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """ResNet-34 for ImageNet (He et al. 2016), from torchvision."""
    return torchvision_resnet("resnet34", num_classes, in_channels)


@register_model("resnet50", input_shape=(3, 224, 224))
def resnet50(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """ResNet-50 for ImageNet, from torchvision: the stride is in the 3×3 convolutions."""
    return torchvision_resnet("resnet50", num_classes, in_channels)
