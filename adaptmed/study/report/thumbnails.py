"""Small pictures of images, for the report."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from adaptmed.data.images import read_image
from adaptmed.errors import InputError

THUMBNAIL_PX = 160


def thumbnail(path: Path) -> bytes | None:
    """PNG bytes of an image with sides of at most ``THUMBNAIL_PX``; ``None`` where it cannot be read."""
    try:
        image = read_image(path)
    except InputError:
        return None
    if image.dtype != np.uint8:
        image = (image * 255).round().astype(np.uint8)
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
