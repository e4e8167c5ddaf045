import io

import numpy as np
import pytest
from PIL import Image

from isoflop.lab.data.images.decode import decode

from .conftest import encoded, picture


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("shape", [(30, 40), (41, 31), (1, 5)])
def test_jpeg_has_the_pixels_that_pillow_reads(shape):
    data = encoded(picture(0, *shape), quality=90)
    pixels = decode(data, 1000)
    assert pixels.shape == (*shape, 3)
    assert np.abs(pixels.astype(int) - by_pillow(data)).max() <= 2


@pytest.mark.parametrize(
    ("needed", "expected"), [(201, 200), (200, 200), (101, 200), (100, 100), (50, 50), (3, 25)]
)
def test_large_jpeg_is_decoded_smaller_if_that_suffices(needed, expected):
    data = encoded(picture(1, 200, 300))
    pixels = decode(data, needed)
    assert pixels.shape == (expected, expected * 300 // 200 + expected % 2, 3)
    smaller = Image.fromarray(by_pillow(data)).resize(pixels.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(pixels.astype(int) - np.asarray(smaller)).mean() < 3


def test_grey_jpeg_becomes_rgb():
    grey = picture(2)[:, :, 0]
    pixels = decode(encoded(grey, quality=100), 1)
    assert pixels.shape[2] == 3
    assert (pixels == pixels[:, :, :1]).all()


def test_other_formats_under_any_name():
    pixels = picture(3)
    assert (decode(encoded(pixels, "PNG"), 30) == pixels).all()
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG", quality=100)
    assert np.abs(decode(cmyk.getvalue(), 30).astype(int) - pixels).mean() < 5


def damages():
    data = encoded(picture(4))
    yield b""
    yield b"no image"
    yield data[:20]
    yield data[: len(data) // 2]
    start = data.index(b"\xff\xc0")  # height and width in the header
    yield data[: start + 5] + b"\xff\xff\xff\xff" + data[start + 9 :]
    yield encoded(picture(4), "PNG")[:-30]


@pytest.mark.parametrize("number", range(6))
def test_damaged_images(number):
    with pytest.raises(Exception):  # noqa: B017, PT011 (of any kind)
        decode(list(damages())[number], 1)
