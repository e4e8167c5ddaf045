"""What many habits are a variation of."""

import torch.nn.functional as F
from tests.torture.habit import Weights
from torch import Tensor, nn

SHAPE = (4, 12)
"""Of the inputs of `Mlp`."""


class Mlp(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.middle(F.relu(self.a(x)))))

    def middle(self, x: Tensor) -> Tensor:
        """Apply the layer in the middle."""
        return self.b(x)


def mlp_macs(w: Weights) -> int:
    """Return the MACs of four rows through `Mlp`."""
    return 4 * w("a", "b", "c")


class Cnn(nn.Module):
    """Two convolutions and a linear layer, on images of 4 × 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.c = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.middle(F.relu(self.a(x)))).mean((2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        """Apply the convolution in the middle."""
        return self.b(x)


IMAGE = (2, 3, 4, 4)
"""Shape of the inputs of `Cnn`."""


def cnn_macs(w: Weights) -> int:
    """Return the MACs of two images of 16 pixels through `Cnn`."""
    return 32 * w("a", "b") + 2 * w("c")
