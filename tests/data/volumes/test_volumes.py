import gzip

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptmed.data.fitting import mask_to_input
from adaptmed.data.images import prepare
from adaptmed.data.masks import read_mask, write_mask
from adaptmed.data.volumes import nifti
from adaptmed.data.volumes.grids import turn, turn_back, turned_shape
from adaptmed.data.volumes.reading import Volume, as_grey, is_volume, read_volume, slices_shape, slices_to_input
from adaptmed.errors import InputError
from adaptmed.types import Preprocessing
from tests.volume_files import write_nifti, write_series

HALF = (0.5, 0.5, 0.5)
TOWARDS = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}
VALUES = np.random.default_rng(0).integers(-500, 500, (3, 4, 5)).astype(np.int16)
reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
planes = st.sampled_from(sorted(TOWARDS))


@st.composite
def affines(draw):
    """Any order and direction of axes, any spacing, tilted by up to 25 degrees."""
    order, signs = draw(st.permutations(range(3))), draw(st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3))
    spacing = draw(st.lists(st.floats(0.3, 6), min_size=3, max_size=3))
    angle = draw(st.floats(-0.4, 0.4))
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.eye(3)[:, order] * np.array(signs) * np.array(spacing)
    affine[:3, 3] = draw(st.lists(st.floats(-200, 200), min_size=3, max_size=3))
    return affine


@given(affine=affines(), plane=planes)
def test_turning_moves_voxels_and_keeps_them_where_they_lie(affine, plane):
    turned, turned_affine = turn(VALUES, affine, plane)
    assert nibabel.aff2axcodes(turned_affine) == TOWARDS[plane]
    assert turned_shape(VALUES.shape, affine, plane) == turned.shape
    index = np.indices(turned.shape).reshape(3, -1)
    world = turned_affine[:3, :3] @ index + turned_affine[:3, 3:]
    stored = np.linalg.solve(affine[:3, :3], world - affine[:3, 3:])
    np.testing.assert_allclose(stored, stored.round(), atol=1e-6)
    np.testing.assert_array_equal(VALUES[tuple(stored.round().astype(int))], turned.ravel())
    np.testing.assert_array_equal(turn_back(turned, affine, plane), VALUES)


def test_the_brain_lies_as_radiologists_look_at_it(tmp_path):
    """The MNI152 template that nilearn ships: (left-right, back-front, feet-head), 2 mm."""
    from nilearn.datasets import load_mni152_template

    nibabel.save(load_mni152_template(resolution=2), tmp_path / "t1.nii.gz")
    stored = nibabel.load(tmp_path / "t1.nii.gz").get_fdata(dtype=np.float32)
    volume = read_volume(tmp_path / "t1.nii.gz")
    assert volume.values.shape == stored.shape[::-1] == (95, 117, 99)
    assert volume.spacing_mm == (2, 2, 2)
    np.testing.assert_array_equal(volume.values, stored[::-1, ::-1].transpose(2, 1, 0))
    assert is_volume(tmp_path / "t1.nii.gz")
    sagittal = read_volume(tmp_path / "t1.nii.gz", plane="sagittal")
    np.testing.assert_array_equal(sagittal.values, stored[::-1, ::-1, ::-1].transpose(0, 2, 1))
    assert 0 <= as_grey(volume).min() < 0.01 < 0.99 < as_grey(volume).max() <= 1
    facts = Preprocessing((28, 28), HALF, HALF, fit="pad")
    pixels = slices_to_input(as_grey(volume)[40:44], facts)
    assert pixels.shape == (4, 3, 28, 28)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert torch.equal(pixels[1], prepare(as_grey(volume)[41], facts))
    head = mask_to_input((volume.values[40:44] > 0).astype(np.uint8), facts)
    assert (pixels[:, 0][head == -1] == -1).all()
    assert pixels[:, 0][head == 1].mean() > pixels[:, 0][head == 0].mean() + 0.3


def test_a_dicom_series_and_its_nifti_file_are_one_volume(tmp_path):
    rows_columns = VALUES.transpose(2, 1, 0)  # slice, row, column
    series = read_volume(write_series(tmp_path / "ct", rows_columns, spacing_mm=2.5, PixelSpacing=[0.8, 0.5]))
    affine = np.array([[-0.5, 0, 0, 20.0], [0, -0.8, 0, 30.0], [0, 0, 2.5, 40.0], [0, 0, 0, 1]])
    file = read_volume(write_nifti(tmp_path / "ct.nii", VALUES * 2 - 1024, affine))
    np.testing.assert_array_equal(series.values, file.values)
    np.testing.assert_allclose(series.affine, file.affine, atol=1e-6)
    np.testing.assert_allclose(series.spacing_mm, (2.5, 0.8, 0.5), atol=1e-6)
    np.testing.assert_array_equal(series.values, rows_columns * 2 - 1024)


@pytest.mark.parametrize("plane", TOWARDS)
def test_slices_are_counted_without_reading_voxels(tmp_path, plane):
    series, file = write_series(tmp_path / "ct", VALUES), write_nifti(tmp_path / "ct.nii.gz", VALUES)
    for path in (series, file):
        assert slices_shape(path, plane) == read_volume(path, plane).values.shape
    file.write_bytes(b"no volume")
    (tmp_path / "empty").mkdir()
    found = {slices_shape(tmp_path / name, plane) for name in ("ct.nii.gz", "empty", "gone.nii")}
    assert found == {(0, 0, 0)}


def test_slope_intercept_and_trailing_dimensions(tmp_path):
    image = nibabel.Nifti1Image(VALUES[..., None], np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "v.nii")
    want = nibabel.load(tmp_path / "v.nii").get_fdata()[::-1, ::-1, :, 0].transpose(2, 1, 0)
    assert want.max() > 200
    np.testing.assert_allclose(read_volume(tmp_path / "v.nii").values, want, rtol=1e-6)


# ---- values to grey


def volume_of(values):
    return Volume(np.asarray(values, np.float32).reshape(1, 1, -1), (1.0, 1.0, 1.0), np.eye(4), nifti.Path("v.nii"))


@given(level=st.floats(-800, 800), width=st.floats(1, 3000))
def test_a_window_is_linear_and_clipped(level, width):
    shown = as_grey(volume_of(np.linspace(-1000, 1000, 41)), window=(level, width)).ravel()
    want = np.clip((np.linspace(-1000, 1000, 41) - level) / width + 0.5, 0, 1)
    np.testing.assert_allclose(shown, want, atol=1e-3 if width < 10 else 1e-4)


def test_percentiles_ignore_a_few_extremes():
    values = np.linspace(0, 1, 10_001)
    values[[5, 77]] = -1e6, 1e6
    shown = as_grey(volume_of(values)).ravel()
    assert (shown.min(), shown.max()) == (0, 1)
    np.testing.assert_allclose(shown[100:-100], np.clip((values[100:-100] - 0.005) / 0.99, 0, 1), atol=2e-3)
    few = np.zeros(10_000)
    few[3] = 2
    assert set(as_grey(volume_of(few)).ravel()) == {0, 1}
    with pytest.raises(
        InputError, match=r"`window`: expected \(level, width\) with a width above 0, but got \(4\.0, 0"
    ):
        as_grey(volume_of(values), window=(4.0, 0.0))


# ---- masks in the geometry of the source


@given(affine=affines(), plane=planes, code=st.sampled_from(["sform", "qform", "both", "nifti 2"]))
@reuse_folder
def test_a_mask_goes_back_into_the_geometry_of_its_file_bit_by_bit(tmp_path, affine, plane, code):
    kind = nibabel.Nifti2Image if code == "nifti 2" else nibabel.Nifti1Image
    image = kind(VALUES, affine)
    image.set_sform(affine if code != "qform" else None, code=1 if code != "qform" else 0)
    image.set_qform(affine if code in ("qform", "both") else None, code=3 if code in ("qform", "both") else 0)
    image.header["descrip"], image.header["intent_name"] = b"Jane Doe", b"Jane"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(image, tmp_path / "v.nii.gz")
    source = nibabel.load(tmp_path / "v.nii.gz")
    volume = read_volume(tmp_path / "v.nii.gz", plane=plane)
    labels = np.select([volume.values > 300, volume.values > 0], [2, 1], 0)
    write_mask(tmp_path / "m.nii.gz", labels, volume)
    written = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(written.dataobj), np.select([VALUES > 300, VALUES > 0], [2, 1], 0), strict=False
    )
    assert written.affine.tobytes() == source.affine.tobytes()
    assert type(written) is type(source)
    assert written.get_data_dtype() == np.uint8
    for name in ("pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_z"):
        assert written.header[name].tobytes() == source.header[name].tobytes(), name
    assert b"Jane" not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())
    again = read_mask(tmp_path / "m.nii.gz", plane=plane)
    np.testing.assert_array_equal(again.values, labels)
    assert again.affine.tobytes() == volume.affine.tobytes()


@pytest.mark.parametrize("plane", sorted(TOWARDS))
def test_a_mask_of_a_series_lies_on_the_series(tmp_path, plane):
    volume = read_volume(write_series(tmp_path / "ct", VALUES, orientation=(0, 1, 0, 0, 0, -1)), plane=plane)
    labels = (volume.values > volume.values.mean()).astype(np.int64) * 300
    write_mask(tmp_path / "m.nii", labels, volume)
    again = read_mask(tmp_path / "m.nii", plane=plane)
    np.testing.assert_array_equal(again.values, labels)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)


def test_a_mask_that_cannot_be_written(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "v.nii", VALUES))
    labels = np.ones(volume.values.shape, np.uint8)
    with pytest.raises(InputError, match=r"m\.png`: expected a name that ends in \.nii or \.nii\.gz, but got m\.png"):
        write_mask(tmp_path / "m.png", labels, volume)
    with pytest.raises(InputError, match=r"m\.nii`: expected a mask of 5 × 4 × 3, but got 4 × 4 × 3"):
        write_mask(tmp_path / "m.nii", labels[1:], volume)
    write_nifti(tmp_path / "v.nii", VALUES[1:])
    with pytest.raises(InputError, match=r"v\.nii`: expected a volume of 3 × 4 × 5, as predicted, but got 2 × 4 × 5"):
        write_mask(tmp_path / "m.nii", labels, volume)
    (tmp_path / "v.nii").unlink()
    with pytest.raises(InputError, match=r"v\.nii`: expected a file, but got nothing there"):
        write_mask(tmp_path / "m.nii", labels, volume)
    assert list(tmp_path.iterdir()) == []


# ---- what is refused


def without_forms(path):
    image = nibabel.Nifti1Image(VALUES, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, path)


def in_metres(path):
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, path)


def colours(path):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), kind), np.eye(4)), path)


def truncated(path):
    write_nifti(path, VALUES)
    path.write_bytes(path.read_bytes()[:360])


def singular(path):
    content = bytearray(write_nifti(path, VALUES).read_bytes())
    content[312:328] = bytes(16)  # srow_z
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "expected a file, but got nothing there"),
        (
            lambda path: path.write_bytes(b"no volume at all"),
            "expected an image that can be decoded, but got ImageFile",
        ),
        (truncated, "expected an image that can be decoded, but got"),
        (
            lambda path: write_nifti(path, VALUES[..., None].repeat(2, 3)),
            "expected three dimensions, but got 4: 3 × 4 ×",
        ),
        (lambda path: write_nifti(path, VALUES[0]), "expected three dimensions, but got 2: 4 × 5"),
        (lambda path: write_nifti(path, VALUES * 0), "expected a volume with content, but got the same value in every"),
        (lambda path: write_nifti(path, np.where(VALUES > 0, np.nan, VALUES)), "but got values that are not finite"),
        (lambda path: write_nifti(path, np.where(VALUES > 0, np.inf, VALUES)), "but got values that are not finite"),
        (lambda path: write_nifti(path, VALUES + 1j), "expected real numbers, but got complex128 voxels"),
        (colours, "expected real numbers, but got"),
        (in_metres, "expected lengths in millimetres, but got meter"),
        (without_forms, "expected a position in space, but got neither sform nor qform"),
        (singular, "expected an affine that can be inverted, but got"),
    ],
    ids=range(13),
)
def test_bad_volumes_are_refused_in_words(tmp_path, make, words):
    make(tmp_path / "v.nii")
    with pytest.raises(InputError, match=rf"v\.nii`: .*{words}"):
        read_volume(tmp_path / "v.nii")


def test_too_many_voxels_are_refused_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "MAX_VOXELS", 59)
    with pytest.raises(InputError, match="expected 1 to 59 voxels, but got 3 × 4 × 5"):
        read_volume(write_nifti(tmp_path / "v.nii.gz", VALUES))
