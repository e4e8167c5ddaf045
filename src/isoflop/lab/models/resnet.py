"""ResNets for small images: a 3×3 stem and no max-pooling.

The ImageNet stem of the library versions (7×7, stride 2, max-pooling) would shrink a 32×32 image
to 8×8 before the first block.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from isoflop.model_registry import register_model


def _shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    """Return the identity, or a 1×1 convolution where the shape changes."""
    if stride == 1 and in_width == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes.

    Args:
        in_width: Input channels.
        width: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_width: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_width, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that scales all that the block adds to its shortcut."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones, and a shortcut as in `BasicBlock`.

    Args:
        in_width: Input channels.
        width: Channels inside; the output has `expansion` times as many.
        stride: Stride of the 3×3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, in_width: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_width = self.expansion * width
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.shortcut = _shortcut(in_width, out_width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that scales all that the block adds to its shortcut."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for small images (He et al. 2016, with the CIFAR stem).

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        base_width: Width of the blocks of the first stage; each further stage has twice that.
        blocks: Blocks of each stage. Every stage but the first halves the resolution.
        zero_init_last: Start each block's last BatchNorm at zero, so that the block begins as its
            shortcut.
        block: Kind of block.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        base_width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        zero_init_last: bool = True,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, base_width, 3, padding=1, bias=False),
            nn.BatchNorm2d(base_width),
            nn.ReLU(inplace=True),
        )
        stages = []
        in_width = base_width
        for index, depth in enumerate(blocks):
            width = base_width * 2**index
            out_width = block.expansion * width
            first = block(in_width, width, stride=1 if index == 0 else 2)
            rest = (block(out_width, width) for _ in range(depth - 1))
            stages.append(nn.Sequential(first, *rest))
            in_width = out_width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(in_width, num_classes)
        self._initialize(zero_init_last)

    def _initialize(self, zero_init_last: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (BasicBlock, Bottleneck)) and zero_init_last:
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores of a batch of images."""
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


@register_model("resnet18_cifar", input_shape=(3, 32, 32))
def resnet18_cifar(
    num_classes: int = 100,
    in_channels: int = 3,
    base_width: int = 64,
    zero_init_last: bool = True,
) -> ResNet:
    """ResNet-18 for 32×32 images: 3×3 stem, no max-pooling."""
    return ResNet(num_classes, in_channels, base_width, (2, 2, 2, 2), zero_init_last)


@register_model("resnet34_cifar", input_shape=(3, 32, 32))
def resnet34_cifar(
    num_classes: int = 100,
    in_channels: int = 3,
    base_width: int = 64,
    zero_init_last: bool = True,
) -> ResNet:
    """ResNet-34 for 32×32 images: 3×3 stem, no max-pooling."""
    return ResNet(num_classes, in_channels, base_width, (3, 4, 6, 3), zero_init_last)


@register_model("resnet50_cifar", input_shape=(3, 32, 32))
def resnet50_cifar(
    num_classes: int = 100,
    in_channels: int = 3,
    base_width: int = 64,
    zero_init_last: bool = True,
) -> ResNet:
    """ResNet-50 for 32×32 images: 3×3 stem, no max-pooling."""
    blocks = (3, 4, 6, 3)
    return ResNet(num_classes, in_channels, base_width, blocks, zero_init_last, Bottleneck)


@register_model("resnet8_digits", input_shape=(1, 8, 8))
def resnet8_digits(
    num_classes: int = 10,
    in_channels: int = 1,
    base_width: int = 16,
    zero_init_last: bool = True,
) -> ResNet:
    """Small ResNet of three blocks for the 8×8 images of handwritten digits."""
    return ResNet(num_classes, in_channels, base_width, (1, 1, 1), zero_init_last)
