"""Small models of the kinds that transforms must handle, for tests all over the suite."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class Vgg(nn.Module):
    """Convolutions, a flatten that multiplies a width by a constant, and a two-layer head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Gated(nn.Module):
    """Grouped and transposed convolutions, squeeze-excite, concatenation and a split."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 24)
        self.squeeze = nn.Conv2d(24, 6, 1)
        self.excite = nn.Conv2d(6, 24, 1)
        self.join = nn.Conv2d(40, 32, 1)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.grouped(x))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = torch.cat([x, y * torch.sigmoid(gate)], 1)
        a, b = self.join(y).chunk(2, 1)
        return self.head(F.relu(self.up(a * b)))


class Volume(nn.Module):
    """One- and three-dimensional convolutions with dilation and stride."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.second = nn.Conv3d(8, 16, (1, 3, 3), stride=(1, 2, 2), padding=(0, 2, 2), dilation=2)
        self.third = nn.Conv1d(16, 24, 3, padding="same", padding_mode="circular")
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.third(x.flatten(2))).mean(2))


def mlp() -> nn.Module:
    """Multi-layer perceptron with LayerNorm and biases."""
    return nn.Sequential(
        nn.Linear(20, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 48),
        nn.ReLU(),
        nn.Linear(48, 5),
    )


def cifar_resnet() -> nn.Module:
    """A narrow CIFAR ResNet with its last norms at zero."""
    from isoflop.models.resnet import resnet18_cifar

    return resnet18_cifar(num_classes=10, base_width=8)


ZOO = {
    "mlp": (mlp, (2, 20)),
    "vgg": (Vgg, (1, 3, 16, 16)),
    "gated": (Gated, (1, 3, 8, 8)),
    "volume": (Volume, (1, 1, 3, 8, 8)),
    "cifar_resnet": (cifar_resnet, (1, 3, 16, 16)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (1, 3, 64, 64)),
    "resnext": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            [1, 1, 1, 1],
            num_classes=10,
            groups=8,
            width_per_group=4,
        ),
        (1, 3, 64, 64),
    ),
    "mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25),
        (1, 3, 64, 64),
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=4,
            hidden_dim=32,
            mlp_dim=64,
            num_classes=10,
        ),
        (1, 3, 32, 32),
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2, 1, 1), 16, num_classes=10),
        (1, 3, 64, 64),
    ),
}
"""Name to `(constructor, input shape)`."""
