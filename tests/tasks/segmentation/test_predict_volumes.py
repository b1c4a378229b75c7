"""Masks of new volumes: on the axes of their files, bit by bit where these say they lie."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest

from adaptmed.tasks.segmentation.predict import Predictor, predict
from tests.masked_images import VALUES
from tests.volume_files import position, write_series

OBLIQUE = np.array([[-0.9, 0.3, 0.2, 12.0], [0.25, 1.1, -0.3, -40.0], [-0.2, 0.3, 2.4, 7.0], [0, 0, 0, 1]])
AFFINES = {
    "RAS": np.diag([1.5, 1.0, 2.5, 1.0]),
    "LPS": np.diag([-1.5, -1.0, 2.5, 1.0]),
    "slices-first": np.array([[0, 0, -1.0, 5], [0, 1.2, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}


def coded(image, form):
    """Say where the volume lies by sform, by qform, or by both."""
    affine = image.affine
    if form == "qform":
        image.set_sform(None, code=0)
        image.set_qform(affine, code=1, strip_shears=True)
    elif form == "both":
        image.set_qform(affine, code=1, strip_shears=True)
        image.set_sform(affine, code=2)
    return image


@pytest.mark.parametrize("form", ["sform", "qform", "both"])
@pytest.mark.parametrize("axes", AFFINES)
@pytest.mark.usefixtures("truthful")
def test_a_right_prediction_of_a_volume_is_its_mask_on_the_axes_of_the_file(deep, tmp_path, axes, form):
    shape = (3, 32, 32) if axes == "slices-first" else (32, 32, 3)
    drawn = np.random.default_rng(0).integers(0, 3, shape)
    image = coded(nibabel.Nifti1Image((drawn * 100).astype(np.int16), AFFINES[axes]), form)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "ct.nii")
    assert predict(deep, {"a/ct.nii": tmp_path / "ct.nii"}, tmp_path / "out", device="cpu") == []
    source, mask = nibabel.load(tmp_path / "ct.nii"), nibabel.load(tmp_path / "out" / "a" / "ct.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), VALUES[drawn])
    np.testing.assert_array_equal(mask.affine, source.affine)
    for get in ("get_sform", "get_qform"):
        (found, code), (expected, own) = (getattr(one, get)(coded=True) for one in (mask, source))
        assert code == own
        assert found is None if expected is None else np.array_equal(found, expected)
    assert mask.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert mask.header.get_zooms() == source.header.get_zooms()


@pytest.mark.usefixtures("truthful")
def test_what_the_crop_left_out_of_a_volume_is_background(deep, tmp_path):
    drawn = np.random.default_rng(0).integers(0, 3, (44, 32, 2))
    nibabel.save(nibabel.Nifti1Image((drawn * 100).astype(np.int16), np.diag([1, 1, 2, 1.0])), tmp_path / "ct.nii")
    predictor = Predictor.load(deep, device="cpu")
    cropping = replace(predictor, shown=replace(predictor.shown, fit="crop"))
    cropping.predict(tmp_path / "ct.nii", tmp_path / "mask.nii.gz")
    expected = VALUES[drawn]
    expected[:6], expected[38:] = 0, 0
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), expected)


@pytest.mark.usefixtures("truthful")
def test_the_mask_of_a_series_lies_where_its_slices_do(deep, tmp_path):
    drawn = np.random.default_rng(0).integers(0, 3, (4, 32, 32))
    write_series(tmp_path / "series", drawn * 100, spacing_mm=2.5)
    predict(deep, {"series": tmp_path / "series"}, tmp_path / "out", device="cpu")
    mask = nibabel.load(tmp_path / "out" / "series.nii.gz")
    values = np.asarray(mask.dataobj)
    for value in (1, 2):
        found = nibabel.affines.apply_affine(mask.affine, np.argwhere(values == VALUES[value]))
        slices, rows, columns = np.nonzero(drawn == value)
        starts = np.array([position(number, 2.5) for number in range(4)])
        lps = starts[slices] + np.stack([columns, rows, 0 * rows], axis=1)  # pixels of 1 mm
        expected = lps * (-1, -1, 1)
        assert {tuple(place) for place in found.round(3)} == {tuple(place) for place in expected.round(3)}


def test_a_picture_for_a_run_on_volumes_is_rejected_with_the_reason(deep, pictures, volumes, tmp_path):
    images = {"0.png": pictures.folder.parent / "pictures" / "0.png"}
    images["0.nii"] = volumes.folder.parent / "volumes" / "0.nii"
    (reject,) = predict(deep, images, tmp_path / "out", device="cpu")
    assert reject["image"] == "0.png"
    assert "expected a volume, but got a picture. This run was trained on volumes." in reject["reason"]
    assert nibabel.load(tmp_path / "out" / "0.nii.gz").shape == nibabel.load(images["0.nii"]).shape
