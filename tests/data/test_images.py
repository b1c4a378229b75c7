from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adaptmed.data import images
from adaptmed.data.images import read_image
from adaptmed.errors import InputError

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def arrays(*tail, dtype=np.uint8):
    """Arrays of any size with at least two values."""
    shape = st.tuples(st.integers(1, 9), st.integers(2, 9)).map(lambda size: (*size, *tail))
    return hnp.arrays(dtype, shape).filter(lambda array: array.min() < array.max())


def png(array, mode=None):
    buffer = BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def read(tmp_path, content, name="x.png"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_image(path)


# ---- PNG and JPEG


@given(array=st.one_of(arrays(), arrays(3)))
@reuse_folder
def test_8_bit_png_round_trip(tmp_path, array):
    np.testing.assert_array_equal(read(tmp_path, png(array)), array)


@given(array=arrays(dtype=np.uint16))
@reuse_folder
def test_16_bit_png_is_divided_by_its_full_range(tmp_path, array):
    picture = read(tmp_path, png(array))
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, array / 65535, rtol=1e-6)


@given(array=arrays(4))
@reuse_folder
def test_transparent_pixels_are_laid_on_black(tmp_path, array):
    want = array[..., :3] * (array[..., 3:] / 255.0)
    if want.max() - want.min() > 2:
        assert np.abs(read(tmp_path, png(array)) - want).max() <= 1


def test_other_modes(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    assert read(tmp_path, png(grey, "LA")).tolist() == grey.tolist()
    assert read(tmp_path, png(np.stack([grey] * 3, axis=-1), "P")).shape == (6, 8, 3)
    assert set(read(tmp_path, png(grey, "1")).ravel()) == {0, 255}
    for mode, shape in (("L", (6, 8)), ("RGB", (6, 8, 3)), ("CMYK", (6, 8, 3))):
        buffer = BytesIO()
        Image.fromarray(grey).convert(mode).save(buffer, "JPEG", quality=100)
        picture = read(tmp_path, buffer.getvalue(), "x.jpg")
        assert picture.shape == shape
        assert np.abs(picture.reshape(6, 8, -1)[..., 0].astype(int) - grey).max() <= 4


def test_exif_orientation_is_applied(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    Image.fromarray(grey).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(grey, -1))


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.png", png(np.full((4, 4), 7, np.uint8)), "expected an image with content, but got the same value in every"),
        ("x.png", b"", "expected PNG, JPEG or DICOM, but got another format"),
        ("x.gif", b"GIF89a", "expected PNG, JPEG or DICOM, but got another format"),
        ("x.png", png(np.eye(99, dtype=np.uint8))[:90], "expected an image that can be decoded"),
    ],
    ids=range(4),
)
def test_bad_files_are_refused_in_words(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, content, name)


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 80)
    with pytest.raises(InputError, match="expected at most 80 pixels, but got 9 × 9"):
        read(tmp_path, png(np.eye(9, dtype=np.uint8)))
    bomb = png(np.eye(9, dtype=np.uint8)).replace(b"\0\0\0\x09\0\0\0\x09", b"\0\x0f\0\0\0\x0f\0\0")
    with pytest.raises(InputError, match=r"x\.png`: expected"):
        read(tmp_path, bomb)


def test_an_animation_and_missing_files(tmp_path):
    frames = [Image.fromarray(np.eye(4, dtype=np.uint8) * k) for k in (1, 2)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="expected a single frame, but got an animation"):
        read_image(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"none\.png`: expected a file, but got nothing there"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="IsADirectoryError"):
        read_image(tmp_path)
