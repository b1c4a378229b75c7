from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adaptmed.data.volumes import series
from adaptmed.data.volumes.reading import is_volume, read_volume
from adaptmed.data.volumes.series import read_series
from adaptmed.errors import InputError
from tests.volume_files import AXIAL, position, write_series

REAL = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
PIXELS = np.random.default_rng(1).integers(-100, 3000, (5, 4, 6))
TILTED = (1, 0, 0, 0, 0.9271839, -0.3746066)
SAGITTAL = (0, 1, 0, 0, 0, -1)


# ---- real slices


def test_a_real_series_is_read_in_the_order_of_its_places():
    values, affine = read_series(REAL / "98892001" / "CT5N")
    files = ["3353", "3023", "2693", "2392", "2062"]  # from -1.2375 mm to 8.7625 mm
    for picture, name in zip(values, files, strict=True):
        dataset = pydicom.dcmread(REAL / "98892001" / "CT5N" / name)
        want = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        np.testing.assert_array_equal(picture, want)
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [72.199997, 143, -1.2375, 1])
    np.testing.assert_allclose(affine @ [4, 0, 2, 1], [72.199997 - 2 * 0.488281, 143, 8.7625, 1])
    volume = read_volume(REAL / "98892001" / "CT5N")
    np.testing.assert_array_equal(volume.values, values)  # stored as it is looked at
    np.testing.assert_allclose(volume.spacing_mm, (2.5, 0.488281, 0.488281))
    assert is_volume(REAL / "98892001" / "CT5N")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (
            "77654033/CT2",
            r"CT2`: expected no missing slice, but got a gap of 202\.5 mm between 17106 and 17136, where slices lie "
            r"1\.25 mm apart\. Add the 161 missing there",
        ),
        ("98892001/CT2N", "CT2N`: expected slices of one orientation, but got another in 6293 and 6924"),
        ("98892003/MR700", "MR700`: expected slices of one orientation, but got another in"),
        ("98892003/MR1", "MR1`: expected one series, but got 3 series, see 4919 and 5641"),
        ("98892003", "98892003`: expected a folder of at least two DICOM slices, but got 0 DICOM files"),
        ("77654033/CR1", "expected a folder of at least two DICOM slices, but got 1 DICOM files"),
        ("TINY_ALPHA/PT000000/ST000000/SE000000", "expected a slice with its place in space, but got no ImagePosition"),
    ],
)
def test_real_folders_that_are_no_volume(folder, words):
    with pytest.raises(InputError, match=words):
        read_volume(REAL / folder)


# ---- made-up slices


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, TILTED], ids=["axial", "sagittal", "tilted"])
@pytest.mark.parametrize("places", [range(5), range(4, -1, -1), (2, 0, 4, 1, 3)], ids=["up", "down", "mixed"])
def test_slices_are_sorted_along_their_normal_whatever_their_names(tmp_path, orientation, places):
    folder = write_series(tmp_path, PIXELS, 2.5, orientation, places, PixelSpacing=[0.7, 0.4])
    values, affine = read_series(folder)
    np.testing.assert_array_equal(values, PIXELS[np.argsort(places)] * 2 - 1024)
    to_nifti = np.array([-1, -1, 1])
    for number in (0, 3):
        start = np.array(position(number, 2.5, orientation))
        along_columns, along_rows = np.array(orientation[:3]), np.array(orientation[3:])
        place = start + 2 * 0.7 * along_rows + 5 * 0.4 * along_columns
        np.testing.assert_allclose((affine @ [number, 2, 5, 1])[:3], place * to_nifti, atol=1e-3)


def test_a_leaning_stack_keeps_its_lean(tmp_path):
    """A CT with tilted gantry: slices lie aside of each other, evenly."""
    changes = {k: {"ImagePositionPatient": [0.0, 0.8 * k, 2.0 * k]} for k in range(5)}
    _, affine = read_series(write_series(tmp_path, PIXELS, changes=changes))
    np.testing.assert_allclose(affine[:3, 0], [0, -0.8, 2.0], atol=1e-9)


def test_every_slice_has_its_own_rescale(tmp_path):
    values, _ = read_series(write_series(tmp_path, PIXELS, changes={2: {"RescaleSlope": "3", "RescaleIntercept": "7"}}))
    np.testing.assert_array_equal(values[2], PIXELS[2] * 3 + 7)
    np.testing.assert_array_equal(values[1], PIXELS[1] * 2 - 1024)


def test_other_files_are_passed_over(tmp_path):
    folder = write_series(tmp_path, PIXELS)
    (folder / "LICENSE.txt").write_text("nothing")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "._IM0001.dcm").write_bytes(b"AppleDouble")
    (folder / "more").mkdir()
    (folder / "IM0000.dcm").rename(folder / "without-suffix")
    assert len(read_series(folder)[0]) == 5


@given(jitter=hnp.arrays(np.float64, 5, elements=st.floats(-0.02, 0.02)))
def test_small_deviations_from_even_spacing_pass(jitter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    values, affine = read_series(write_series(folder, PIXELS, 2.0, places=np.arange(5) + jitter))
    np.testing.assert_array_equal(values, PIXELS * 2 - 1024)
    assert np.linalg.norm(affine[:3, 0]) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"places": (0, 1, 2, 3, 5)},
            r"no missing slice, but got a gap of 5 mm between .* where slices lie 2\.5 mm apa",
        ),
        ({"places": (0, 3, 4, 5, 6)}, r"no missing slice, but got a gap of 7\.5 mm .* Add the 2 missing there"),
        (
            {"places": (0, 1, 2.3, 3, 4)},
            r"evenly spaced slices \(within 5% of the spacing\), but got gaps from 1\.75 to",
        ),
        ({"places": (0, 1, 2, 3, 4.4)}, r"evenly spaced slices .* but got gaps from 2\.5 to 3\.5 mm, .* mm off"),
        ({"places": (0, 1, 2, 2, 3)}, r"one slice per position, but got two in one place: IM\d+\.dcm and IM\d+\.dcm"),
        ({"places": (1, 1, 1, 1, 1)}, "one slice per position"),
        (
            {"changes": {3: {"ImagePositionPatient": [-19.0, -30.0, 47.5]}}},
            r"evenly spaced slices .* but got gaps from 2\.5 to 2\.5 mm, IM\d+\.dcm lying 1 mm off",
        ),
        ({"changes": {2: {"ImageOrientationPatient": list(TILTED)}}}, "slices of one orientation, but got another in"),
        ({"changes": {2: {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}}}, "slices of one orientation"),
        ({"changes": {2: {"SeriesInstanceUID": "1.2.3.5"}}}, "one series, but got 2 series, see IM"),
        (
            {"changes": {2: {"PixelSpacing": [1, 2]}}},
            "slices of one size, but got 4 × 6 of 1 × 1 mm and 4 × 6 of 1 × 2",
        ),
        ({"changes": {2: {"Rows": 6, "Columns": 4}}}, "slices of one size, but got 4 × 6 of 1 × 1 mm and 6 × 4 of"),
    ],
    ids=range(12),
)
def test_a_bad_mixture_is_refused_with_folder_and_files(tmp_path, options, words):
    folder = write_series(tmp_path / "bad", PIXELS, **options)
    with pytest.raises(InputError, match=f"bad`: expected {words}"):
        read_series(folder)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"ImagePositionPatient": None}, "a slice with its place in space, but got no ImagePositionPatient"),
        ({"ImageOrientationPatient": None, "PixelSpacing": None}, "got no ImageOrientationPatient, PixelSpacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two unit directions at right angles, but got"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "an image that can be decoded, but got ValueError"),
        (
            {"PixelSpacing": [1, 0]},
            r"a position and a pixel spacing above 0, but got position .* spacing \[1\.0, 0\.0\]",
        ),
        ({"PhotometricInterpretation": "RGB"}, r"grey slices \(MONOCHROME2\), but got RGB"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, r"grey slices \(MONOCHROME2\), but got MONOCHROME1"),
        ({"NumberOfFrames": 12}, "one slice per file, but got 12 frames"),
        ({"PixelData": None}, "a DICOM image, but got CT Image Storage without pixel data"),
        ({"PixelData": b"\0\0"}, "an image that can be decoded, but got ValueError"),
    ],
    ids=range(10),
)
def test_a_bad_slice_is_named(tmp_path, elements, words):
    folder = write_series(tmp_path, PIXELS, changes={3: elements})
    name = f"IM{np.random.default_rng(3).permutation(5)[3]:04d}"
    with pytest.raises(InputError, match=rf"{name}\.dcm`: expected .*{words}"):
        read_series(folder)


def test_a_file_without_a_header_and_a_folder_that_is_gone(tmp_path):
    folder = write_series(tmp_path / "ct", PIXELS)
    (folder / "IM0002.dcm").write_bytes(b"\0" * 400)
    with pytest.raises(InputError, match=r"IM0002\.dcm`: expected a DICOM file, but got no DICM header"):
        read_series(folder)
    with pytest.raises(InputError, match=r"gone`: expected a file, but got nothing there"):
        read_series(tmp_path / "gone")


def test_too_many_voxels_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(series, "MAX_VOXELS", 119)
    with pytest.raises(InputError, match="expected at most 119 voxels, but got 120"):
        read_series(write_series(tmp_path, PIXELS))
