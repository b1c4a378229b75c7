"""The masks of a bank's rows: which are usable, where they lie, what the others cost."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.tasks.segmentation import masks as module
from adaptmed.tasks.segmentation.masks import find_masks
from tests.masked_images import DEPTHS, HIGH, LOW, write_pictures, write_volumes

CLASS_OF = {0: 0, LOW: 1, HIGH: 2}
FIRST = np.zeros(1, dtype=np.int64)


def laid_by_pil(mask, fit):
    """Where the encoder's input shows a mask, by Pillow."""
    height, width = mask.shape
    canvas = np.full((32, 32), -1)
    ratio = max(32 / height, 32 / width) if fit == "crop" else min(32 / height, 32 / width)
    exact = [side * ratio for side in mask.shape]
    size = (32, 32) if fit == "squash" else tuple(map(int if fit == "crop" else round, exact))
    resized = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)).astype(int)
    resized = np.vectorize(CLASS_OF.get)(resized)
    if fit == "crop":
        top, left = (round((side - 32) / 2) for side in size)
        return resized[top : top + 32, left : left + 32]
    top, left = ((32 - side) // 2 for side in size)
    canvas[top : top + size[0], left : left + size[1]] = resized
    return canvas


def mask_file(bank, row):
    return bank.folder.parent / "data" / bank.rows["mask"].iloc[row]


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_masks_lie_where_the_encoder_sees_them(embedded, tmp_path, fit):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10), fit=fit)
    masks = find_masks(bank, tmp_path / "masks")
    assert masks.labels == {0: "background", LOW: f"label {LOW}", HIGH: f"label {HIGH}"}
    assert masks.names == (f"label {LOW}", f"label {HIGH}")
    assert (masks.rejects, (tmp_path / "masks" / "rejects.jsonl").read_text()) == ([], "")
    for split in ("train", "validate"):
        for row in masks.rows(split).tolist():
            drawn = np.asarray(Image.open(mask_file(bank, row)))
            np.testing.assert_array_equal(masks.planes(row, FIRST)[0], laid_by_pil(drawn, fit))
            np.testing.assert_array_equal(masks.source(row).values, drawn)
    assert (masks.planes(1, FIRST) == -1).any() == (fit == "pad" and bank.rows["image"].iloc[1] != "1.png")


def test_every_slice_of_a_volume_lies_in_its_place(volumes, tmp_path):
    masks = find_masks(volumes, tmp_path, splits=("train",))
    assert set(masks.first) == set(volumes.subset("train").tolist())
    for row in masks.first:
        number = volumes.rows["image"].iloc[row].split(".")[0]
        stored = nibabel.load(volumes.folder.parent / "volumes" / f"{number}-mask.nii.gz")
        axial = np.asarray(stored.dataobj)[::-1, ::-1].transpose(2, 1, 0)  # columns to the left, rows to the back
        found = masks.planes(row, np.arange(DEPTHS[int(number)]))
        np.testing.assert_array_equal(found, np.stack([laid_by_pil(plane, "squash") for plane in axial]))


def test_labels_are_named_or_taken_from_train(pictures, tmp_path):
    named = {9: "never drawn", HIGH: "bright", LOW: "grey"}
    masks = find_masks(pictures, tmp_path, labels=named)
    assert list(masks.labels.items()) == [(0, "background"), (LOW, "grey"), (HIGH, "bright"), (9, "never drawn")]
    rows = masks.rows("test")
    drawn = [
        np.unique(Image.open(pictures.folder.parent / "pictures" / pictures.rows["mask"].iloc[row])) for row in rows
    ]
    expected = [[value in found for value in (LOW, HIGH, 9)] for found in drawn]
    assert masks.present(rows).tolist() == expected


def spoil(folder):
    """Spoil five masks of pictures, each in its own way; return the file's number → words of the reason."""
    Image.fromarray(np.full((10, 10), LOW, np.uint8)).save(folder / "0-mask.png")
    (folder / "1-mask.png").unlink()
    for number, value in ((2, 9), (8, 7)):
        drawn = np.asarray(Image.open(folder / f"{number}-mask.png")).copy()
        drawn[0, 0] = value
        Image.fromarray(drawn).save(folder / f"{number}-mask.png")
    (folder / "6-mask.png").write_bytes(b"no picture")
    size = r"0-mask\.png`: expected the size of its image `0\.png`, 37 × 45, but got 10 × 10"
    return {0: size, 1: r"1-mask\.png`", 2: "values among 0, 2, 5, but got 9", 6: r"6-mask\.png`", 8: "but got 7"}


@pytest.mark.parametrize("labels", [{LOW: "grey", HIGH: "bright"}, None])
def test_a_mask_that_cannot_be_used_costs_its_own_row(embedded, tmp_path, labels):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10))
    reasons = spoil(tmp_path / "data")
    if labels is None:
        del reasons[2]  # 9 stands in a mask of train, and so is a label
    masks = find_masks(bank, tmp_path / "masks", labels=labels)
    listed = [json.loads(line) for line in (tmp_path / "masks" / "rejects.jsonl").read_text().splitlines()]
    assert listed == list(masks.rejects)
    found = {reject["mask"]: reject["reason"] for reject in listed}
    assert set(found) == {f"{number}-mask.png" for number in reasons}
    for number, words in reasons.items():
        with pytest.raises(InputError, match=words):
            raise InputError(found[f"{number}-mask.png"])
    kept = {bank.rows["mask"].iloc[row] for split in ("train", "validate", "test") for row in masks.rows(split)}
    assert kept == set(bank.rows["mask"]) - set(found)


def test_masks_of_volumes_that_lie_elsewhere_or_are_flat(embedded, tmp_path):
    bank = embedded(write_volumes(tmp_path / "data", depths=(3, 2, 4, 2, 3)))
    other = nibabel.load(tmp_path / "data" / "0-mask.nii.gz")
    moved = other.affine + np.diag([0, 0, 0.5, 0])
    nibabel.save(nibabel.Nifti1Image(np.asarray(other.dataobj), moved), tmp_path / "data" / "0-mask.nii.gz")
    for name in ("3.nii", "3-mask.nii.gz"):  # one slice more than was embedded
        grown = nibabel.load(tmp_path / "data" / name)
        values = np.pad(np.asarray(grown.dataobj), ((0, 0), (0, 0), (0, 1)))
        nibabel.save(nibabel.Nifti1Image(values, grown.affine), tmp_path / "data" / name)
    masks = find_masks(bank, tmp_path / "masks")
    found = {reject["mask"]: reject["reason"] for reject in masks.rejects}
    assert set(found) == {"0-mask.nii.gz", "3-mask.nii.gz"}
    assert "expected the affine of its image `0.nii`" in found["0-mask.nii.gz"]
    assert found["3-mask.nii.gz"] == "expected 2 slices, as were embedded, but got 3. Embed the table again."
    assert len(masks.rows("train")) == 2


def test_the_number_that_marks_padding_is_refused_in_a_short_sentence(embedded, tmp_path):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10))
    deep = np.where(np.asarray(Image.open(tmp_path / "data" / "1-mask.png")), 65535, 7).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "data" / "1-mask.png")
    (reject,) = find_masks(bank, tmp_path / "masks").rejects
    assert "expected values from 0 to 65534, but got 65535" in reject["reason"]
    assert len(reject["reason"]) < 400


def empty(folder, numbers):
    for number in numbers:
        drawn = np.asarray(Image.open(folder / f"{number}-mask.png"))
        Image.fromarray(drawn * 0).save(folder / f"{number}-mask.png")


@pytest.mark.parametrize("labels", [{LOW: "grey", HIGH: "bright"}, None])
def test_a_training_set_of_empty_masks_is_refused(embedded, tmp_path, labels):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10))
    empty(tmp_path / "data", range(6))
    with pytest.raises(InputError, match="`mask`: expected a mask that is not empty, but got only background"):
        find_masks(bank, tmp_path / "masks", labels=labels)


def test_without_a_usable_mask_the_first_reason_is_said(embedded, tmp_path):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10))
    for number in range(6):
        (tmp_path / "data" / f"{number}-mask.png").unlink()
    words = r"expected usable masks in the split train, but got none; the first of 6 rejects: .*0-mask\.png"
    with pytest.raises(InputError, match=words):
        find_masks(bank, tmp_path / "masks")


def test_a_bank_whose_rows_name_no_mask_is_refused(pictures, tmp_path):
    bare = Bank.open(pictures.folder)
    for rows in (bare.rows.assign(mask=""), bare.rows.drop(columns="mask")):
        bare.rows = rows
        with pytest.raises(
            InputError, match=r"expected rows with an image and a mask, but got none\. Add a column `mask`"
        ):
            find_masks(bare, tmp_path)


def test_another_manifest_is_refused(embedded, tmp_path):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10))
    (tmp_path / "data" / "data-bank.csv").write_text("image\n0.png\n")
    with pytest.raises(InputError, match="expected the table the bank was made of, but got another table now"):
        find_masks(bank, tmp_path / "masks")
    bank.info = replace(bank.info, manifest=str(tmp_path / "gone.csv"))
    with pytest.raises(InputError, match="but got nothing there"):
        find_masks(bank, tmp_path / "masks")


def test_what_was_found_is_taken_up_again_without_opening_a_file(pictures, tmp_path, monkeypatch):
    first = find_masks(pictures, tmp_path)
    monkeypatch.setattr(module, "read_mask", lambda *_, **__: pytest.fail("a mask was opened"))
    again = find_masks(pictures, tmp_path)
    assert (again.labels, again.values, again.first, again.rejects) == (
        first.labels, first.values, first.first, first.rejects,
    )  # fmt: skip
    np.testing.assert_array_equal(again.laid, first.laid)
    with pytest.raises(pytest.fail.Exception, match="a mask was opened"):
        find_masks(pictures, tmp_path, labels={LOW: "grey", HIGH: "bright"})


def test_a_search_that_was_stopped_leaves_nothing_to_take_up(pictures, tmp_path):
    whole = np.array(find_masks(pictures, tmp_path).laid)

    def stop(_what, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_masks(pictures, tmp_path, labels={LOW: "grey", HIGH: "bright"}, progress=stop)
    np.testing.assert_array_equal(find_masks(pictures, tmp_path).laid, whole)
