"""From the bytes of a file to pixels."""

import io

import numpy as np

from isoflop.optional import require


def decode(data: bytes, shorter_side: int) -> np.ndarray:
    """Decode an image.

    JPEG files are decoded by libjpeg-turbo (simplejpeg), at half, a quarter or an eighth of their
    size where that suffices: other fractions take longer than the whole image. What it does not read
    (other formats, and files with small errors) is left to Pillow.

    Args:
        data: Content of the file.
        shorter_side: Pixels of the shorter side that are needed; a larger image may come back smaller,
            but not below that.

    Returns:
        Bytes of shape (height, width, 3), in RGB.

    Raises:
        Exception: The data are no image, truncated or damaged; many kinds.
    """
    simplejpeg = require("simplejpeg", "vision")
    image = require("PIL.Image", "vision")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        # A damaged header may ask for any amount of memory; Pillow has the same limit.
        if height * width > 2 * image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{width} × {height} pixels are too many")
        least = min(height, width)
        reduction = next((k for k in (8, 4, 2) if least // k >= shorter_side), 1)
        sizes = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
        return simplejpeg.decode_jpeg(data, **sizes)
    except ValueError:
        try:
            with image.open(io.BytesIO(data)) as picture:
                return np.asarray(picture.convert("RGB"))
        except image.UnidentifiedImageError:
            raise ValueError("this is no image of a known format") from None
