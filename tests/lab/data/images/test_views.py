import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from isoflop.lab.data.images.views import CentralView, RandomView

from .conftest import encoded, picture

JITTER = (24, 40)


@pytest.mark.parametrize("shape", [(30, 40), (51, 37), (20, 20), (16, 90)])
def test_central_view_is_that_of_torchvision(shape):
    data = encoded(picture(0, *shape), "PNG")
    image = torch.from_numpy(np.asarray(Image.open(io.BytesIO(data))).copy()).permute(2, 0, 1)
    expected = v2.CenterCrop(16)(v2.Resize(20, antialias=True)(image)).permute(1, 2, 0)
    view = CentralView(size=16, shorter_side=20)(data, 0)
    assert torch.equal(view, expected)


def views(shape, count=400, **changes):
    """Yield views of an image whose red and green grow to the right and to the bottom."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x, y, 0 * x], 2).astype(np.uint8)
    data = encoded(pixels, "PNG")
    options = {"size": 16, "jitter": JITTER, "seed": 1, "epoch": 2, **changes}
    for index in range(count):
        yield RandomView(**options)(data, index)


@pytest.mark.parametrize("shape", [(100, 200), (250, 120)])
def test_random_view_has_the_scales_and_places_of_resizing_and_cropping(shape):
    least = min(shape)
    sides, tops, lefts, mirrored = [], [], [], 0
    for view in views(shape):
        x, y = view[8, :, 0].int(), view[:, 8, 1].int()
        mirror = bool(x[0] > x[-1])
        mirrored += mirror
        x = x.flip(0) if mirror else x
        side = float(x[-1] - x[0]) * 16 / 15
        assert float(y[-1] - y[0]) * 16 / 15 == pytest.approx(side, abs=2.2)  # a square
        assert (view[:, :, 2] == 0).all()
        sides.append(side)
        tops.append(float(y[0]) - side / 32)
        lefts.append(float(x[0]) - side / 32)
    longest, shortest = 16 * least / JITTER[0], 16 * least / JITTER[1]
    assert min(sides) == pytest.approx(shortest, abs=2)
    assert max(sides) == pytest.approx(longest, abs=2)
    # Uniform in the length to which the shorter side is resized.
    lengths = 16 * least / np.array(sides)
    assert np.mean(lengths) == pytest.approx(sum(JITTER) / 2, abs=1)
    for edge, extent in ((tops, shape[0]), (lefts, shape[1])):
        place = np.array(edge) / (extent - np.array(sides))
        assert np.mean(place) == pytest.approx(0.5, abs=0.06)
        assert place.min() < 0.1
        assert place.max() > 0.9
    assert 150 < mirrored < 250


def test_random_view_depends_on_seed_epoch_and_number_alone():
    first, again = list(views((60, 80), 5)), list(views((60, 80), 5))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    for change in ({"seed": 2}, {"epoch": 3}):
        other = views((60, 80), 5, **change)
        assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def test_images_smaller_than_the_view_are_enlarged():
    data = encoded(picture(1, 5, 3))
    assert RandomView(size=16, jitter=JITTER, seed=0, epoch=0)(data, 0).shape == (16, 16, 3)
    assert CentralView(size=16, shorter_side=20)(data, 0).shape == (16, 16, 3)
