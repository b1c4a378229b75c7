"""How masks are judged: in the geometry of the images, and beside the prediction of nothing."""

import nibabel
import numpy as np
import pytest
import torch
from torch.nn import functional

from adaptmed.heads.decoders import ScratchUnet
from adaptmed.metrics.segmentation import METRICS, image_scores
from adaptmed.tasks.segmentation import judging
from adaptmed.tasks.segmentation.judging import as_scores, score_model, score_nothing
from adaptmed.tasks.segmentation.masks import find_masks
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import Wanted, WindowReader
from tests.masked_images import HIGH, LOW, QUICK, SPACING_MM, write_volumes

MODEL = Segmenter(ScratchUnet(2, spatial_dims=3, channels=4))  # asked for nothing: predictions are made up
DICE, POSITIVES, HD95 = (list(METRICS).index(name) for name in ("dice", "dice_positives", "hd95_mm"))


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_nothing_scores_as_an_empty_prediction_does(request, tmp_path, kind):
    masks = find_masks(request.getfixturevalue(kind), tmp_path, labels={LOW: "grey", HIGH: "bright", 9: "never drawn"})
    rows = [row for split in ("train", "validate", "test") for row in masks.rows(split).tolist()]
    found = score_nothing(masks, rows)
    for row, image in zip(rows, as_scores(found), strict=True):
        truth = np.searchsorted([0, LOW, HIGH, 9], masks.source(row).values)
        spacing = None if kind == "pictures" else SPACING_MM
        expected = image_scores(np.zeros_like(truth), truth, labels=(1, 2, 3), spacing_mm=spacing)
        assert image.keys() == expected.keys()
        for metric, values in expected.items():
            np.testing.assert_array_equal(image[metric], values, strict=True)
    empty = [[not (masks.source(row).values == value).any() for value in (LOW, HIGH, 9)] for row in rows]
    assert 0 < np.mean(empty, axis=0)[0] < 1
    assert found[:, :, DICE].mean(axis=0).tolist() == np.mean(empty, axis=0).tolist()
    assert np.nansum(found[:, :, POSITIVES]) == 0
    assert score_nothing(masks, []).shape == (0, 3, len(METRICS))


@pytest.fixture
def boxes(embedded, tmp_path):
    """Volumes as large as the encoder's input, so that a prediction there is one of the file's own voxels."""
    table = write_volumes(tmp_path / "data", depths=(8,) * 5)
    affine = np.diag([*SPACING_MM, 1.0])
    generator = np.random.default_rng(0)
    for number in range(5):
        mask = np.zeros((32, 32, 8), np.uint8)
        mask[10:20, 12:22, 2:6] = LOW
        image = generator.integers(0, 100, mask.shape).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "data" / f"{number}-mask.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "data" / f"{number}.nii")
    bank = embedded(table)
    return bank, find_masks(bank, tmp_path / "masks", splits=("train", "validate", "test"))


@pytest.mark.parametrize(("axis", "moved_mm"), [(0, SPACING_MM[2]), (1, SPACING_MM[1]), (2, SPACING_MM[0])])
def test_distances_are_millimetres_of_the_file(boxes, monkeypatch, axis, moved_mm):
    bank, masks = boxes

    def shifted(_model, reader, rows, _settings, **_options):
        for row in rows:
            assert reader.bank is bank
            classes = masks.planes(row, np.arange(8)).roll(1, dims=axis)
            yield functional.one_hot(classes, 2).movedim(-1, 0).float()

    monkeypatch.setattr(judging, "predict_rows", shifted)
    rows = masks.rows("test").tolist() + masks.rows("train").tolist()
    found = score_model(MODEL, WindowReader(bank, Wanted()), masks, rows, QUICK)
    assert found.shape == (len(rows), 1, len(METRICS))
    np.testing.assert_allclose(found[:, :, HD95], moved_mm)
    kept = 1 - 1 / (4, 10, 10)[axis]
    np.testing.assert_allclose(found[:, :, DICE], kept)


def test_a_prediction_that_is_right_scores_1(boxes, monkeypatch):
    bank, masks = boxes
    right = (
        functional.one_hot(masks.planes(row, np.arange(8)), 2).movedim(-1, 0).float()
        for row in masks.rows("test").tolist()
    )
    monkeypatch.setattr(judging, "predict_rows", lambda *_, **__: right)
    found = score_model(MODEL, WindowReader(bank, Wanted()), masks, masks.rows("test").tolist(), QUICK)
    assert found.tolist() == [[[1.0, 1.0, 0.0, 1.0]]]


def test_scores_stand_in_the_order_of_the_rows(boxes, monkeypatch):
    bank, masks = boxes
    rows = [*range(5)] * 8  # more than wait at a time
    parts = [row / 5 for row in rows]

    def partly(*_, **__):
        for row, part in zip(rows, parts, strict=True):
            logits = functional.one_hot(masks.planes(row, np.arange(8)), 2).movedim(-1, 0).float()
            yield torch.cat([logits[:, : int(8 * part)], torch.zeros_like(logits[:, int(8 * part) :])], dim=1)

    monkeypatch.setattr(judging, "predict_rows", partly)
    found = score_model(MODEL, WindowReader(bank, Wanted()), masks, rows, QUICK)[:, 0, DICE]
    slices = [max(0, min(4, int(8 * part) - 2)) for part in parts]
    np.testing.assert_allclose(found, [2 * n / (n + 4) for n in slices])
