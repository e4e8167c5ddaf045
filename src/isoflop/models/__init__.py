"""Models that no library has as they are needed, and one way to name the models of every library."""

# The modules imported only for their effect register their models.
from isoflop.models import mobile as _mobile  # noqa: F401
from isoflop.models import resnet_imagenet as _resnet_imagenet  # noqa: F401
from isoflop.models import segmentation as _segmentation  # noqa: F401
from isoflop.models.attention import PixelAttention
from isoflop.models.botnet import botnet50, botnet50_cifar
from isoflop.models.detection import DetectionNetwork, detector
from isoflop.models.gpt3 import GPT3_CONFIGS, Gpt3Config, gpt3
from isoflop.models.registry import MODELS, ModelEntry
from isoflop.models.resnet import BasicBlock, Bottleneck, ResNet
from isoflop.models.specs import build_model, default_example_shape, example_inputs

__all__ = [
    "GPT3_CONFIGS",
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "DetectionNetwork",
    "Gpt3Config",
    "ModelEntry",
    "PixelAttention",
    "ResNet",
    "botnet50",
    "botnet50_cifar",
    "build_model",
    "default_example_shape",
    "detector",
    "example_inputs",
    "gpt3",
]
