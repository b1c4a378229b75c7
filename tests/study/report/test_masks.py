"""The report and the command of a study of masks."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adaptmed.bank import Bank
from adaptmed.cli import main
from adaptmed.data.images import prepare, read_image
from adaptmed.study.report.overlays import TINT, colours
from adaptmed.study.report.report import headlines
from adaptmed.study.segmentation.study import study_segmentation
from adaptmed.study.segmentation.subject import shown_rows
from tests.masked_pictures import STUDY
from tests.study.report.test_report import Outline, gap, row

ARMS = ("empty", "unet", "frozen", "adaptor")


@pytest.fixture(scope="module")
def made(masked, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    settings = replace(STUDY, arms=ARMS, seeds=1)
    study_segmentation([Bank.open(masked / "bank")], [masked / "run"], out, settings=settings, device="cpu")
    return out


@pytest.fixture(scope="module")
def page(made):
    return (made / "report.html").read_text(encoding="utf-8")


def strips(page):
    """Of each test image: caption → pixels."""
    found = []
    for strip in page.split('<div class="strip">')[1:]:
        pairs = re.findall(r'src="data:image/png;base64,([^"]+)"[^>]*><figcaption>([^<]+)<', strip)
        opened = {name: Image.open(io.BytesIO(base64.b64decode(png))) for png, name in pairs}
        found.append({name: np.asarray(image.convert("RGB")).astype(float) for name, image in opened.items()})
    return found


def test_images_truth_and_predictions_stand_side_by_side(page, subject):
    shown = strips(page)
    assert len(shown) == len(shown_rows(subject, 6)) == 3  # of each label one, and an empty one
    assert [list(pictures) for pictures in shown] == [["image", "truth", "unet", "frozen", "adaptor"]] * 3
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in Outline(page).addresses)
    assert "contains data, do not share" in page
    sizes = {pixels.shape for pictures in shown for pixels in pictures.values()}
    assert sizes == {(32, 32, 3)}  # as the encoder sees it


def test_the_image_is_the_picture_and_the_truth_is_tinted_as_the_legend_says(page, masked, subject):
    legend = dict(re.findall(r'<i style="background: (#[0-9a-f]{6})"></i>([^<]+)<', page))
    assert {name: colour for colour, name in legend.items()} == colours(subject.masks.names)
    facts = subject.bank.info.images.preprocessing
    for row_number, pictures in zip(shown_rows(subject, 6), strips(page), strict=True):
        plain = prepare(read_image(masked / "data" / f"{row_number}.png"), facts)
        by_hand = plain.permute(1, 2, 0).numpy() * facts.std + facts.mean
        np.testing.assert_allclose(pictures["image"], 255 * by_hand, atol=1.5)
        touched = (pictures["truth"] != pictures["image"]).any(axis=-1)
        drawn = subject.masks.values[row_number]
        for number, (colour, _) in enumerate(legend.items(), start=1):
            solid = (pictures["truth"] == list(bytes.fromhex(colour[1:]))).all(axis=-1)
            tint = (1 - TINT) * pictures["image"] + TINT * np.array(list(bytes.fromhex(colour[1:])))
            inside = (np.abs(pictures["truth"] - tint) <= 1).all(axis=-1) & touched
            assert (solid.any(), inside.any()) == (number in drawn, number in drawn)
        assert touched.any() == (drawn != (0,))


def test_without_examples_no_image_and_no_mark(masked, made, page):
    settings = replace(STUDY, arms=ARMS, seeds=1)
    study_segmentation(
        [Bank.open(masked / "bank")], [masked / "run"], made, settings=settings, examples=False, device="cpu"
    )
    bare = (made / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page
    assert "data:image" not in bare
    assert "do not share" not in bare
    assert "Test images with truth and predictions" not in bare


def test_words_are_those_of_masks(page):
    outline = Outline(page)
    text = "".join(outline.text)
    first = re.search(r'<p class="headline">([^<]+)</p>', page).group(1)
    assert re.match(r"At 25\u00a0% masks the adaptor reaches \d\.\d\d mean Dice on positives, ", first)
    for heading in ("Mean Dice on positives", "Mean Dice over all images", "Paired differences in Dice on positives"):
        assert heading in outline.headings
    assert "Label by label, Dice on positives" in text
    assert "At 25\u00a0% masks" in outline.headings
    assert "AUROC" not in text
    assert "a U-Net trained from scratch and the empty prediction are the honest yardsticks" in text
    assert "Calibration" not in outline.headings


def test_the_first_sentence_sets_the_adaptor_against_the_frozen_decoder():
    rows = [row("adaptor", 1.0, 0.5, metric="dice_positives", task="segmentation")]
    gaps = [gap("adaptor", "frozen", 1.0, 0.1, metric="dice_positives")]
    rows.append(row("frozen", 1.0, 0.4, metric="dice_positives", task="segmentation"))
    (said,) = headlines(rows, gaps)
    assert said == (
        "At 100\u00a0% masks the adaptor reaches 0.50 mean Dice on positives, "
        "+0.10 [0.08, 0.12] over the best baseline (frozen)."
    )


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_the_command_studies_masks(masked, tmp_path, capsys):
    words = ("--task", "segmentation", "--fractions", 0.5, 1, "--seeds", 1, "--steps", 2, "--replicates", 20)
    more = ("--mask-labels", "1=effusion", "2=nodule", "--learning-rates", 0.01, "--device", "cpu")
    out = tmp_path / "out"
    assert run("study", masked / "bank", *words, *more, "--out", out) == 0
    said = capsys.readouterr().out
    assert "Mean Dice on positives" in said
    assert "50% of masks" in said
    assert str(out / "report.html") in said.replace("\n", "")
    results = json.loads((out / "results.json").read_text())
    assert {row["arm"] for row in results["records"]} == {"empty", "unet", "frozen"}
    assert {row["label"] for row in results["records"]} == {"effusion", "nodule", "macro"}
    assert results["settings"]["training"]["steps"] == 2
    assert run("study", masked / "bank", *words, *more, "--out", out, "--no-examples") == 0
    assert "do not share" not in (out / "report.html").read_text()


def test_the_command_with_an_adaptor_and_tuned_encoders(masked, tmp_path):
    words = ("--task", "segmentation", "--fractions", 1, "--seeds", 1, "--steps", 2, "--replicates", 20)
    tuned = ("--tuned-bank", masked / "bank-l", "--tuned-adaptor", masked / "run-l", "--device", "cpu")
    arms = ("--arms", "frozen", "adaptor", "adaptor+lora", "--adaptor", masked / "run")
    assert run("study", masked / "bank", *words, *arms, *tuned, "--out", tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["arm"] for row in results["records"]} == {"frozen", "adaptor", "adaptor+lora"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arms", "adaptor"), "but got adaptor without an adaptor"),
        (("--decoder", "dpt"), "taps"),
        (("--mask-labels", "effusion"), "expected value=name"),
        (("--steps", 0), "`steps`: expected at least 1"),
    ],
)
def test_what_the_command_cannot_do_it_says(masked, tmp_path, capsys, words, message):
    assert run("study", masked / "bank", "--task", "segmentation", *words, "--out", tmp_path / "out") == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_help_says_what_is_meant_for_masks(capsys):
    assert run("study", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("--task", "--decoder", "--mask-labels", "--steps", "--learning-rates"):
        assert words in said
    assert "default: ()" not in said
