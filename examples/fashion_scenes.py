"""Write scenes of Fashion-MNIST's garments in the formats of COCO and Cityscapes.

python examples/fashion_scenes.py --fashion DIR --out scenes
isoflop train fashion-scenes-detection --data scenes --out run
"""

from pathlib import Path

import tyro

from isoflop.lab.data import ImageData, load_dataset
from isoflop.lab.data.scenes import write_scenes


def main(
    fashion: Path, out: Path, train: int = 2000, test: int = 500, side: int = 64, seed: int = 0
) -> None:
    """Write the folder `out`."""
    data = load_dataset("fashion-mnist", fashion)
    assert isinstance(data, ImageData)
    write_scenes(data, out, train=train, test=test, side=side, seed=seed)


if __name__ == "__main__":
    tyro.cli(main)
