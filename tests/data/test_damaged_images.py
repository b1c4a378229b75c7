import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adaptmed.data.images import read_image
from adaptmed.errors import InputError

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def png(array):
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


SEEDS = [
    png(np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)),
    png(np.random.default_rng(0).integers(0, 65535, (12, 12), dtype=np.uint16)),
    (SHIPPED / "MR_small.dcm").read_bytes(),
    (SHIPPED / "SC_rgb_small_odd_jpeg.dcm").read_bytes(),
    (SHIPPED / "MR_small_RLE.dcm").read_bytes(),
]


@given(
    content=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    suffix=st.sampled_from(["", ".png", ".dcm"]),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_give_a_picture_or_an_input_error(tmp_path, content, changes, keep, suffix):
    broken, path = bytearray(content), tmp_path / f"x{suffix}"
    for place, value in changes:
        broken[int(place * len(broken))] = value
    try:
        path.write_bytes(broken[: int(keep * len(broken))])
        picture = read_image(path)
    except InputError as error:
        assert "expected" in str(error)  # noqa: PT017
    else:
        assert picture.dtype in (np.uint8, np.float32)
        assert np.isfinite(picture).all()


def test_threads_read_odd_files_without_a_warning():
    """pydicom warns of bytes after the pixels of this file; the filters are shared by all threads."""
    odd = SHIPPED / "MR_small_padded.dcm"
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        pictures = list(pool.map(read_image, [odd] * 12))
    assert len(pictures) == 12
    assert not caught


def test_warning_filters_are_left_as_they_were():
    before = list(warnings.filters)
    read_image(SHIPPED / "CT_small.dcm")
    assert warnings.filters == before
