"""timm's networks for mobile devices, with two of their five strides removed for 32×32 images.

All five would shrink such an image to a single pixel; three leave a final map of 4×4.
"""

from torch import nn

from isoflop.model_registry import register_model
from isoflop.optional import require


def _timm_with_unit_strides(
    name: str, convolutions: tuple[str, ...], num_classes: int, in_channels: int
) -> nn.Module:
    """Build an untrained model of timm and set the strides of some convolutions to 1."""
    timm = require("timm", "vision")
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    for path in convolutions:
        model.get_submodule(path).stride = (1, 1)
    return model


@register_model("mobilenet_v2_cifar", input_shape=(3, 32, 32))
def mobilenet_v2_cifar(num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018) for 32×32 images: stem and 24-channel stage at stride 1."""
    strided = ("conv_stem", "blocks.1.0.conv_dw")
    model = _timm_with_unit_strides("mobilenetv2_100", strided, num_classes, in_channels)
    for block in model.modules():
        # Residual blocks begin as their shortcuts, as in the paper (C.1); in MobileViT of timm they do.
        if getattr(block, "has_skip", False):
            nn.init.zeros_(block.get_parameter("bn3.weight"))
    return model


@register_model("mobilevit_s_cifar", input_shape=(3, 32, 32))
def mobilevit_s_cifar(num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    """MobileViT-S (Mehta and Rastegari 2022) for 32×32 images: stem and second stage at stride 1.

    Its attention runs on maps of 16×16, 8×8 and 4×4, which its patches of 2×2 divide.
    """
    strided = ("stem.conv", "stages.1.0.conv2_kxk.conv")
    return _timm_with_unit_strides("mobilevit_s", strided, num_classes, in_channels)
