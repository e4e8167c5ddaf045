"""Models that no library has, and one way to name the models of every library."""

from isoflop.models import resnet as _resnet  # noqa: F401  (registers its models)
from isoflop.models.registry import INPUT_SHAPES, MODELS
from isoflop.models.resnet import BasicBlock, ResNet
from isoflop.models.specs import build_model, default_example_shape, example_inputs

__all__ = [
    "INPUT_SHAPES",
    "MODELS",
    "BasicBlock",
    "ResNet",
    "build_model",
    "default_example_shape",
    "example_inputs",
]
