"""Models that no library has as they are needed."""

# The modules imported only for their effect register their models.
from isoflop.lab.models import mobile as _mobile  # noqa: F401
from isoflop.lab.models import resnet_imagenet as _resnet_imagenet  # noqa: F401
from isoflop.lab.models import segmentation as _segmentation  # noqa: F401
from isoflop.lab.models.attention import PixelAttention
from isoflop.lab.models.botnet import botnet50, botnet50_cifar
from isoflop.lab.models.detection import DetectionNetwork, detector
from isoflop.lab.models.gpt3 import GPT3_CONFIGS, Gpt3Config, gpt3
from isoflop.lab.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "GPT3_CONFIGS",
    "BasicBlock",
    "Bottleneck",
    "DetectionNetwork",
    "Gpt3Config",
    "PixelAttention",
    "ResNet",
    "botnet50",
    "botnet50_cifar",
    "detector",
    "gpt3",
]
