"""The size that decoders see images at, and when their training ends."""

from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from adaptmed.data.images import at_size
from adaptmed.embedding.options import EmbedOptions
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.objectives.overlap import overlap_error
from adaptmed.runs.folder import read_metrics
from adaptmed.tasks.segmentation.decoder_file import load_decoder
from adaptmed.tasks.segmentation.masks import find_masks
from adaptmed.tasks.segmentation.predict import predict
from adaptmed.tasks.segmentation.reading import Examples, Wanted, WindowReader
from adaptmed.tasks.segmentation.settings import MaskChoices, SegmentationSettings
from adaptmed.tasks.segmentation.shapes import shown_in
from adaptmed.types import Preprocessing
from tests.masked_images import QUICK, SPLITS, tune
from tests.tiny_encoders import PatchEncoder

SMALL = ((14, 11), (16, 13))
"""Rows and columns of slices that are smaller than the encoder's input."""


def write_small(folder):
    """Write ten volumes of small slices; the label is a bright block."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(10):
        height, width = SMALL[number % 2]
        values = np.random.default_rng(number).integers(0, 50, (width, height, 4)).astype(np.uint8)
        mask = np.zeros_like(values)
        mask[3:8, 4:10, 1:] = 2
        values[mask > 0] += 150
        for name, drawn in ((f"{number}.nii", values), (f"{number}-mask.nii", mask)):
            nibabel.save(nibabel.Nifti1Image(drawn, np.eye(4)), folder / name)
        facts = {"patient": f"v{number}", "split": SPLITS[number % 5]}
        rows.append({"image": f"{number}.nii", "mask": f"{number}-mask.nii", **facts})
    return pd.DataFrame(rows)


@pytest.fixture
def small(embedded, tmp_path):
    return embedded(write_small(tmp_path / "data"))


def test_small_volumes_are_shown_at_their_own_voxels_and_others_as_the_encoder_sees_them(small, volumes, pictures):
    assert shown_in(small, QUICK).image_size_px == (16, 16)  # no slice is longer
    for bank in (volumes, pictures):
        assert shown_in(bank, QUICK) == bank.images.preprocessing
    assert shown_in(pictures, replace(QUICK, shown_px=20)).image_size_px == (20, 20)
    with pytest.raises(InputError, match="`shown_px`: expected at most 32, the input, but got 40"):
        shown_in(pictures, replace(QUICK, shown_px=40))
    with pytest.raises(InputError, match="`shown_px`: expected the encoder's input with LoRA inside the encoder"):
        MaskChoices(settings=replace(QUICK, shown_px=20), lora=LoRA(rank=2))


def test_images_and_masks_have_the_size_that_is_shown(small, tmp_path):
    shown = shown_in(small, QUICK)
    masks = find_masks(small, tmp_path / "masks", shown=shown)
    reader = WindowReader(small, Wanted(tokens=True, pixels=True), shown)
    windows, mask = Examples(reader, masks, masks.rows("train"), 3, seed=0).batch(np.array([0, 1]), draw=0)
    assert windows.size == (16, 16)
    assert windows.pixels.shape == (6, 3, 16, 16)
    assert mask.shape == (2, 3, 16, 16)
    bright = windows.pixels.mean(dim=1).unflatten(0, (2, 3)) > 0
    agree = (bright == (mask == 1))[mask >= 0].float().mean()
    assert agree > 0.95  # resizing blurs the edges


def test_another_size_lays_the_masks_out_again(small, tmp_path):
    first = find_masks(small, tmp_path, shown=shown_in(small, QUICK))
    again = find_masks(small, tmp_path, shown=shown_in(small, replace(QUICK, shown_px=24)))
    assert (first.laid.shape[1:], again.laid.shape[1:]) == ((16, 16), (24, 24))


def test_a_run_keeps_its_size_and_its_fit_for_predictions(small, run, tmp_path):
    result = tune(small, run, tmp_path / "out", settings=replace(QUICK, steps=30, validations=3, batch_size=6))
    _, facts = load_decoder(tmp_path / "out")
    assert (facts.shown_px, facts.fit) == ((16, 16), small.images.preprocessing.fit)
    test = small.rows.iloc[small.subset("test")]
    folder = small.folder.parent / "data"
    predict(tmp_path / "out", {name: folder / name for name in test["image"]}, tmp_path / "masks", device="cpu")
    scores = []
    for image, mask in zip(test["image"], test["mask"], strict=True):
        files = tmp_path / "masks" / image.replace(".nii", ".nii.gz"), folder / mask
        said, true = (np.asarray(nibabel.load(path).dataobj) == 2 for path in files)
        scores.append(2 * (said & true).sum() / (said.sum() + true.sum()))
    (dice,) = [row["value"] for row in result["test"]["tuned"] if row["metric"] == "dice"]
    assert dice == pytest.approx(np.mean(scores), abs=0.02)
    assert dice > 0.5


@pytest.mark.parametrize(
    ("own", "volumes", "fit"), [("crop", True, "pad"), ("crop", False, "crop"), ("squash", True, "squash")]
)
def test_slices_of_volumes_are_never_cropped_unasked(own, volumes, fit):
    encoder = PatchEncoder()
    encoder.preprocessing = replace(encoder.preprocessing, fit=own)
    assert EmbedOptions().preprocessing_of(encoder, volumes=volumes).fit == fit
    assert EmbedOptions(fit="crop").preprocessing_of(encoder, volumes=volumes).fit == "crop"


def looks(out):
    return [line["step"] for line in read_metrics(out)]


def test_training_ends_when_the_validated_dice_stops_rising(pictures, run, tmp_path):
    still = replace(QUICK, steps=20, validations=10, patience=2, learning_rate=1e-12)
    tune(pictures, run, tmp_path / "still", settings=still)
    assert looks(tmp_path / "still") == [2, 4, 6]  # nothing rises after the first look
    tune(pictures, run, tmp_path / "long", settings=replace(still, patience=20))
    assert looks(tmp_path / "long") == list(range(2, 21, 2))


def test_training_ends_after_its_minutes_and_stays_ended(pictures, run, tmp_path):
    short = replace(QUICK, steps=20, validations=10, minutes=1e-6)
    first = tune(pictures, run, tmp_path / "out", settings=short)
    assert looks(tmp_path / "out") == [2]
    assert tune(pictures, run, tmp_path / "out", settings=short) == first
    with pytest.raises(InputError, match=r"`minutes`: expected a time above 0, but got 0\.0"):
        SegmentationSettings(minutes=0.0)


@pytest.mark.parametrize("classes", [1, 3])
def test_what_is_validated_is_the_dice_of_the_prediction(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(4, classes, 9, 9, generator=generator)
    mask = torch.randint(-1, max(2, classes), (4, 9, 9), generator=generator)
    said = (logits[:, 0] > 0).long() if classes == 1 else logits.argmax(1)
    said, labelled = torch.where(mask < 0, 0, said), mask >= 0
    scores = []
    for number in range(1, max(2, classes)):
        both = ((said == number) & (mask == number) & labelled).sum()
        scores.append(2 * both / ((said == number).sum() + (mask == number).sum()))
    assert overlap_error(logits, mask).item() == pytest.approx(1 - np.mean(scores), abs=1e-5)
    one_hot = functional.one_hot(mask.clamp(min=0), max(2, classes)).movedim(-1, 1).float()
    right = one_hot[:, 1:] * 2 - 1 if classes == 1 else one_hot
    assert overlap_error(right, mask).item() == pytest.approx(0, abs=1e-5)


def test_images_shrink_without_losing_their_mean():
    facts = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    pixels = torch.rand(2, 3, 16, 16)
    assert at_size(pixels, (16, 16)) is pixels
    assert torch.allclose(at_size(pixels, facts.image_size_px).mean((2, 3)), pixels.mean((2, 3)), atol=0.05)
