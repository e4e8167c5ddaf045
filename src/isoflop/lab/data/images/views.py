"""What a model sees of an image: random windows in training, the middle in tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.lab.data.images.decode import decode


@dataclass(frozen=True, kw_only=True)
class RandomView:
    """A window of random scale and place, mirrored or not (scale jitter, Simonyan et al. 2015).

    As if the image had been resized such that its shorter side has a random length, and a square
    been cut out of it. The random numbers of an image depend on nothing but the attributes here and
    its own number.

    Attributes:
        size: Height and breadth of the window.
        jitter: Least and largest length of the shorter side.
        seed: Seed of the run.
        epoch: Number of the epoch.
    """

    size: int
    jitter: tuple[int, int]
    seed: int
    epoch: int

    def __call__(self, data: bytes, index: int) -> Tensor:
        """Return the view of an image.

        Args:
            data: Content of its file.
            index: Its number.

        Returns:
            Bytes of shape (size, size, 3).
        """
        random = np.random.default_rng([self.seed, self.epoch, index])
        shorter_side = int(random.integers(self.jitter[0], self.jitter[1] + 1))
        place, mirror = random.random(2), random.random() < 0.5
        pixels = decode(data, shorter_side)
        height, width = pixels.shape[:2]
        side = max(1, round(self.size * min(height, width) / shorter_side))
        top, left = (int(p * (n - side + 1)) for p, n in zip(place, (height, width), strict=True))
        # Cutting before resizing spares most of the work.
        window = pixels[top : top + side, left : left + side]
        view = _resize(window, (self.size, self.size))
        return view.flip(1) if mirror else view


@dataclass(frozen=True, kw_only=True)
class CentralView:
    """The middle of an image whose shorter side has been resized to a fixed length.

    Attributes:
        size: Height and breadth of the window.
        shorter_side: Length of the shorter side.
    """

    size: int
    shorter_side: int

    def __call__(self, data: bytes, index: int) -> Tensor:
        """Return the view of an image; see `RandomView`."""
        del index
        pixels = decode(data, self.shorter_side)
        least = min(pixels.shape[:2])
        height, width = (self.shorter_side * n // least for n in pixels.shape[:2])
        resized = _resize(pixels, (height, width))
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return resized[top : top + self.size, left : left + self.size]


def _resize(pixels: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Resize (height, width, 3) bytes with antialiasing; four times faster here than Pillow."""
    # Arrays of Pillow are read-only, of which PyTorch warns; nothing is written to them here.
    image = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    planes = image.permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(planes, size=tuple(shape), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0)
