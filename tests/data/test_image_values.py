"""Which pixel values an encoder's input is made of, and which are refused instead of clipped to white."""

import numpy as np
import pytest
import torch
from PIL import Image

from adaptmed.data.images import as_array, prepare, read_image
from adaptmed.errors import InputError
from adaptmed.types import Preprocessing

FACTS = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
RAMP = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (RAMP * 255, "values from 0 to 255"),
        (RAMP.astype(np.float64) * 4 - 2, "values from -2 to 2"),
        (0 - RAMP, "values from -1 to 0"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "values that are not finite"),
        (np.where(RAMP > 0.5, np.inf, RAMP), "values that are not finite"),
    ],
    ids=range(5),
)
def test_floats_that_are_no_shares_of_white_are_refused(image, got):
    with pytest.raises(InputError, match=rf"`image`: expected floats in \[0, 1\], but got {got}\. [DR]"):
        prepare(image, FACTS)


def test_what_resampling_overshoots_is_clipped():
    over = prepare(RAMP * 1.2 - 0.1, FACTS)
    assert (over.min(), over.max()) == (-1, 1)
    assert prepare(RAMP.astype(np.float16), FACTS).isfinite().all()


def test_files_pillow_images_and_arrays_are_one(tmp_path):
    grey = (RAMP * 255).astype(np.uint8)
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(as_array(palette), read_image(tmp_path / "p.png"))
    np.testing.assert_array_equal(as_array(str(tmp_path / "p.png")), as_array(tmp_path / "p.png"))
    assert as_array(grey) is grey
    np.testing.assert_array_equal(as_array(Image.fromarray(RAMP)), RAMP)
    deep = Image.fromarray((RAMP * 65535).astype(np.uint16))
    torch.testing.assert_close(prepare(as_array(deep), FACTS), prepare(RAMP, FACTS), atol=1e-4, rtol=0)
