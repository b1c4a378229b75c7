"""Three planes: every place of an axial slice finds its features in the coronal and sagittal slices."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from adaptmed.cohort.planes import depth_of, slices_by_plane
from adaptmed.data.volumes.grids import turn
from adaptmed.errors import InputError
from adaptmed.tasks.segmentation.predict import predict
from adaptmed.tasks.segmentation.windows.across import brought, places_across
from adaptmed.types import Preprocessing
from tests.masked_images import HIGH, LOW, QUICK, SIZES, tune, write_volumes

FACTS = Preprocessing((48, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", fit="pad")
GRID = (12, 12)
SHAPE = (20, 30, 24)  # slices, rows, columns of the axial order


def cells_of(volume):
    """Mean value of every token cell of every slice, as an encoder of one number would say it; NaN on padding."""
    _, height, width = volume.shape
    scale = min(48 / height, 48 / width)
    sizes = round(height * scale), round(width * scale)
    resized = torch.nn.functional.interpolate(volume[:, None], size=sizes, mode="bilinear", align_corners=False)
    missing = 48 - sizes[0], 48 - sizes[1]
    starts = missing[0] // 2, missing[1] // 2
    padding = (starts[1], missing[1] - starts[1], starts[0], missing[0] - starts[0])
    padded = torch.nn.functional.pad(resized, padding, value=float("nan"))
    return torch.nn.functional.avg_pool2d(padded, 4)


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
@pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -0.7, 0.5)])
def test_a_ramp_through_the_volume_is_found_where_it_stands(plane, direction):
    grids = torch.meshgrid(*(torch.arange(side) + 0.5 for side in SHAPE), indexing="ij")
    volume = sum(weight * grid for weight, grid in zip(direction, grids, strict=True))
    stored = volume.numpy().transpose(2, 1, 0)[::-1, ::-1]  # columns to the left, rows to the back
    axial, _ = turn(stored, np.diag([1.0, 1.0, 1.0, 1.0]), "axial")
    np.testing.assert_allclose(axial, volume, rtol=1e-6)
    other = torch.from_numpy(turn(stored, np.diag([1.0, 1.0, 1.0, 1.0]), plane)[0].copy())
    offsets = np.arange(5, 15)
    found = brought(cells_of(other), places_across(SHAPE, offsets, plane, FACTS, GRID))[0]
    expected = cells_of(volume)[offsets][:, 0]
    inner = ~(expected.isnan() | found.isnan())
    inner[:, :2], inner[:, -2:] = False, False  # there other planes repeat their edge
    assert inner.float().mean() > 0.3
    assert torch.allclose(found[inner], expected[inner], atol=0.3)


@pytest.fixture
def three(embedded, tmp_path):
    return embedded(write_volumes(tmp_path / "data").drop(columns="text", errors="ignore"), plane="three")


def test_a_bank_holds_every_slice_of_three_planes(three):
    for row in range(len(three)):
        number = int(three.rows["image"].iloc[row].split(".")[0])
        height, width = SIZES[number % 3]
        axial, coronal, sagittal = slices_by_plane(three, row)
        assert (len(coronal), len(sagittal)) == (height, width)
        assert depth_of(three, row) == len(axial)
        assert axial.start == three.items_of(row).start
        assert sagittal.stop == three.items_of(row).stop
        depth = len(axial)
        assert three.slice_sizes(list(coronal)).unique(dim=0).tolist() == [[depth, width]]
        assert three.slice_sizes(list(sagittal)).unique(dim=0).tolist() == [[depth, height]]


def test_what_was_learnt_on_three_planes_predicts_as_it_was_judged(three, run, tmp_path):
    out = tmp_path / "out"
    result = tune(three, run, out, settings=replace(QUICK, shown_px=32))
    assert np.isfinite([row["value"] for row in result["test"]["tuned"] if row["metric"] == "dice"]).all()
    test = three.rows.iloc[three.subset("test")]
    folder = three.folder.parent / "data"
    assert predict(out, {name: folder / name for name in test["image"]}, tmp_path / "masks", device="cpu") == []
    names = zip(test["image"], test["mask"], strict=True)
    files = [(tmp_path / "masks" / image.replace(".nii", ".nii.gz"), folder / mask) for image, mask in names]
    pairs = [tuple(np.asarray(nibabel.load(path).dataobj) for path in both) for both in files]
    for value in (LOW, HIGH):
        scores = []
        for said, true in pairs:
            size = (said == value).sum() + (true == value).sum()
            scores.append(2 * ((said == value) & (true == value)).sum() / size if size else 1.0)
        found = [row for row in result["test"]["tuned"] if (row["metric"], row["label"]) == ("dice", f"label {value}")]
        assert found[0]["value"] == pytest.approx(np.mean(scores), abs=0.02)


def test_three_planes_need_pixels_and_the_decoder_that_reads_one_map(embedded, three, run, tmp_path):
    with pytest.raises(InputError, match="expected the pixels of volumes beside three planes, but got none"):
        embedded(write_volumes(tmp_path / "more"), "more", plane="three", pixels=False)
    with pytest.raises(InputError, match="expected image-concat on slices of three planes, but got dpt"):
        tune(three, run, tmp_path / "out", settings=replace(QUICK, decoder="dpt"))
