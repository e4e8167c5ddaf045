"""The layers of a ResNet that networks for other tasks begin with, trained or not."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.flops.trace import trace
from isoflop.lab.models.resnet import ResNet

STAGES = ("layer1", "layer2", "layer3", "layer4")
"""What the stages of a ResNet are called in a backbone."""

_PROBE = 64


def backbone_layers(classifier: nn.Module) -> nn.Sequential:
    """Return the layers of a classifier up to the last map of features, under their names.

    The layers themselves are returned, not copies. The weights of torchvision's and timm's ResNets
    keep their names.

    Args:
        classifier: A ResNet of four stages, of isoflop, torchvision or timm, transformed or not.

    Raises:
        IsoflopError: It is something else.
    """
    if isinstance(classifier, ResNet):
        stages = {f"layer{i}": stage for i, stage in enumerate(classifier.stages, 1)}
        layers = {"stem": classifier.stem, **stages}
    else:
        children = dict(classifier.named_children())
        names = list(children)
        last = names.index(STAGES[-1]) + 1 if STAGES[-1] in children else 0
        layers = {name: children[name] for name in names[:last]}
    if tuple(layers)[-len(STAGES) :] != STAGES:
        raise IsoflopError(
            f"{type(classifier).__name__} is no ResNet of four stages, so it cannot be the backbone of "
            "another network. Train a classifier such as isoflop:resnet18."
        )
    return nn.Sequential(OrderedDict(layers))


class StageMaps(nn.Module):
    """The maps of features that the stages of a backbone make, besides its input and its stem's.

    Args:
        layers: The layers, as `backbone_layers` returns them.

    Attributes:
        layers: Names of the layers, in the order in which they run.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = [name for name, _ in layers.named_children()]
        for name, layer in layers.named_children():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the input, what goes into the first stage, and the output of each stage."""
        maps = [images]
        x = images
        for name in self.layers:
            if name == STAGES[0]:
                maps.append(x)
            x = self.get_submodule(name)(x)
            if name in STAGES:
                maps.append(x)
        return maps


@dataclass(frozen=True)
class MapShape:
    """Shape of a map of features.

    Attributes:
        channels: Its channels.
        stride: Pixels of the image for each of its own, in each direction.
    """

    channels: int
    stride: int


def map_shapes(layers: nn.Sequential) -> dict[str, MapShape]:
    """Return the shapes of the maps that the stages of a backbone make, by the stages' names."""
    stem = next(m for m in layers.modules() if isinstance(m, nn.Conv2d))
    shapes = trace(StageMaps(layers), (1, stem.in_channels, _PROBE, _PROBE)).output_shapes
    return {
        name: MapShape(shape[1], _PROBE // shape[2])
        for name, shape in zip(STAGES, shapes[-len(STAGES) :], strict=True)
    }


def dilate(stage: nn.Module, rate: int) -> None:
    """Replace the strides of convolutions by dilation, which keeps the size of maps, in place.

    Args:
        stage: What holds the convolutions; their kernels are of odd size.
        rate: The dilation, which is what the strides were together.
    """
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride, module.dilation = (1, 1), (rate, rate)
            module.padding = tuple(rate * (size // 2) for size in module.kernel_size)
