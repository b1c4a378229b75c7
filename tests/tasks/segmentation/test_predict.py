"""Masks of new images: in their own geometry, each alone, and only those that are missing."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adaptmed.cli import main
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.tasks.segmentation.predict import Predictor, mask_names, predict
from tests.masked_images import HIGH, LOW, QUICK, SHORT_METHOD, VALUES, tune, write_pictures, write_volumes
from tests.volume_files import write_series


def rejects_of(out):
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


# ---- pictures


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_mask_has_the_size_of_its_picture(embedded, tmp_path, fit):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10), fit=fit)
    pretrain(bank, SHORT_METHOD, tmp_path / "run", device="cpu")
    tune(bank, tmp_path / "run", tmp_path / "out", settings=replace(QUICK, steps=2))
    images = {f"{number}.png": tmp_path / "data" / f"{number}.png" for number in range(8, 10)}
    images |= {
        f"{height}x{width}.png": tmp_path / f"{height}x{width}.png" for height, width in ((1, 77), (91, 3), (33, 31))
    }
    for path in [*images.values()][2:]:
        height, width = map(int, path.stem.split("x"))
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)).save(path)
    assert predict(tmp_path / "out", images, tmp_path / "masks", device="cpu") == []
    for name, path in images.items():
        with Image.open(tmp_path / "masks" / name) as mask, Image.open(path) as image:
            assert (mask.size, mask.mode) == (image.size, "L")
            assert set(np.unique(mask)) <= {0, LOW, HIGH}


@pytest.mark.parametrize(
    ("fit", "size"), [("squash", (32, 32)), ("pad", (32, 21)), ("crop", (41, 32)), ("squash", (16, 8))]
)
@pytest.mark.usefixtures("truthful")
def test_a_right_prediction_is_the_mask_where_the_encoder_saw_it(tuned, tmp_path, fit, size):
    drawn = np.random.default_rng(0).integers(0, 3, size)
    Image.fromarray((drawn * 127.5).astype(np.uint8)).save(tmp_path / "image.png")
    predictor = Predictor.load(tuned, device="cpu")
    facts = replace(predictor.shown, fit=fit, interpolation="nearest")
    replace(predictor, inputs=facts, shown=facts).predict(tmp_path / "image.png", tmp_path / "mask.png")
    found, expected = np.asarray(Image.open(tmp_path / "mask.png")), VALUES[drawn]
    if fit == "crop":
        expected[:4], expected[36:] = 0, 0  # nobody has seen them
    np.testing.assert_array_equal(found, expected)


def test_predictions_are_those_that_were_judged(pictures, tuned, tmp_path):
    compare_with_judged(pictures, tuned, tmp_path)


def test_a_run_with_lora_predicts_through_its_own_encoder(pictures, run, tmp_path):
    fast = replace(QUICK, encoder_learning_rate=0.05)
    tune(pictures, run, tmp_path / "out", settings=fast, lora=LoRA(rank=2))
    compare_with_judged(pictures, tmp_path / "out", tmp_path)
    assert Predictor.load(tmp_path / "out", device="cpu").encoder.lora is not None


def compare_with_judged(bank, out, folder):
    test = bank.rows.iloc[bank.subset("test")]
    root = bank.folder.parent / "pictures"
    predict(out, {name: root / name for name in test["image"]}, folder / "masks", device="cpu")
    judged = json.loads((out / "metrics.json").read_text())["test"]["tuned"]
    for value in (LOW, HIGH):
        scores = []
        for image, mask in zip(test["image"], test["mask"], strict=True):
            said, true = (np.asarray(Image.open(path)) == value for path in (folder / "masks" / image, root / mask))
            size = said.sum() + true.sum()
            scores.append(2 * (said & true).sum() / size if size else 1.0)
        (row,) = [row for row in judged if (row["metric"], row["label"]) == ("dice", f"label {value}")]
        assert row["value"] == pytest.approx(np.mean(scores), abs=0.01)


def test_an_unreadable_image_costs_no_other(tuned, pictures, tmp_path):
    root = pictures.folder.parent / "pictures"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    volume = write_volumes(tmp_path / "v", depths=(2,))["image"][0]
    images = {"a.png": root / "0.png", "broken.png": tmp_path / "broken.png", "gone.png": tmp_path / "gone.png"}
    images |= {"deep.nii": tmp_path / "v" / volume, "b.png": root / "1.png"}
    done = []
    found = predict(tuned, images, tmp_path / "out", device="cpu", progress=lambda *now: done.append(now))
    assert done == [(number, 5) for number in range(1, 6)]
    assert [reject["image"] for reject in found] == ["broken.png", "gone.png", "deep.nii"]
    assert found == rejects_of(tmp_path / "out")
    assert "expected a picture, but got a volume. This run was trained on pictures." in found[2]["reason"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png", "b.png", "config.json", "labels.json", "rejects.jsonl"}
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels == {"0": "background", str(LOW): f"label {LOW}", str(HIGH): f"label {HIGH}"}


@pytest.mark.parametrize("images", [{}, {"gone.png": None}])
def test_without_a_readable_image_it_fails(tuned, tmp_path, images):
    images = {name: tmp_path / name for name in images}
    got = r"none of 1; the first: .*gone\.png" if images else "no image at all"
    with pytest.raises(InputError, match=f"`images`: expected an image that can be read, but got {got}"):
        predict(tuned, images, tmp_path / "out", device="cpu")


def test_what_is_there_is_not_computed_again(tuned, pictures, tmp_path, monkeypatch):
    root = pictures.folder.parent / "pictures"
    images = {f"{number}.png": root / f"{number}.png" for number in range(3)}
    predict(tuned, images, tmp_path / "out", device="cpu")
    content = {name: (tmp_path / "out" / name).read_bytes() for name in images}
    (tmp_path / "out" / "1.png").unlink()
    real, seen = Predictor.predict, []

    def watched(self, path, out):
        seen.append(path.name)
        real(self, path, out)

    monkeypatch.setattr(Predictor, "predict", watched)
    predict(tuned, images, tmp_path / "out", device="cpu")
    assert seen == ["1.png"]
    assert content == {name: (tmp_path / "out" / name).read_bytes() for name in images}


def test_another_run_does_not_write_into_the_same_folder(tuned, pictures, run, tmp_path):
    images = {"0.png": pictures.folder.parent / "pictures" / "0.png"}
    predict(tuned, images, tmp_path / "out", device="cpu")
    tune(pictures, run, tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="a run with the same configuration, to resume, but got decoder_sha256"):
        predict(tmp_path / "other", images, tmp_path / "out", device="cpu")


def test_two_images_with_the_same_mask_are_refused(tuned, tmp_path):
    images = {"a/1.jpg": tmp_path / "1.jpg", "a/1.png": tmp_path / "1.png"}
    with pytest.raises(
        InputError, match=r"`a/1\.png`: expected another name than a/1\.jpg, whose mask is a/1\.png too"
    ):
        predict(tuned, images, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_tuned_run_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"expected a decoder in decoder\.json, but got none"):
        predict(run, {}, tmp_path / "out")


@pytest.mark.parametrize("damage", ["decoder.json", "decoder.safetensors"])
def test_a_damaged_decoder_is_refused(tuned, tmp_path, damage):
    shutil.copytree(tuned, tmp_path / "copy")
    (tmp_path / "copy" / damage).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"expected a whole decoder, but got"):
        predict(tmp_path / "copy", {}, tmp_path / "out")


def test_every_mask_stays_below_the_folder():
    names = ["/data/a/1.png", "../data/2.png", "b/../3.png", "./4.png"]
    assert mask_names(names, volumes=False) == {
        "/data/a/1.png": "data/a/1.png", "../data/2.png": "data/2.png", "b/../3.png": "b/3.png", "./4.png": "4.png",
    }  # fmt: skip
    assert mask_names(["/ct/1.nii.gz", "../ct/series"], volumes=True) == {
        "/ct/1.nii.gz": "ct/1.nii.gz", "../ct/series": "ct/series.nii.gz",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"whose mask is data/1\.png too"):
        mask_names(["/data/1.png", "../data/1.png"], volumes=False)


def test_images_beside_the_folder_of_the_table_are_neither_skipped_nor_written_over(tuned, pictures, tmp_path):
    root = pictures.folder.parent / "pictures"
    (tmp_path / "data").mkdir()
    (tmp_path / "table").mkdir()
    for number in (0, 1):
        (tmp_path / "data" / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes())
    images = {name: tmp_path / "table" / name for name in ("../data/0.png", str(tmp_path / "data" / "1.png"))}
    predict(tuned, images, tmp_path / "out", device="cpu")
    written = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["0.png", "1.png"]
    assert (tmp_path / "data" / "0.png").read_bytes() == (root / "0.png").read_bytes()


def test_files_named_by_a_uid_keep_apart():
    names = ["1.2.840.5", "1.2.840.6", "1.2.840.6.dcm"]
    with pytest.raises(InputError, match=r"`1\.2\.840\.6\.dcm`: .* whose mask is 1\.2\.840\.6\.png too"):
        mask_names(names, volumes=False)
    assert mask_names(names[:2], volumes=False) == {name: f"{name}.png" for name in names[:2]}


# ---- command line


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, words), "--device", "cpu"])
    return stop.value.code


def test_a_table_is_predicted_by_its_split(tuned, pictures, tmp_path, capsys):
    table = pictures.info.manifest
    assert command(tuned, table, "--split", "test", "--out", tmp_path / "out") == 0
    names = pictures.rows["image"].iloc[pictures.subset("test")]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == set(names)
    assert "4 masks in" in capsys.readouterr().out


def test_words_that_name_no_images_are_refused(tuned, pictures, tmp_path, capsys):
    root = pictures.folder.parent / "pictures"
    assert command(tuned, root / "0.png", "--split", "test", "--out", tmp_path / "out") == 1
    assert "`inputs`: expected one table beside --split" in capsys.readouterr().err
    assert command(tuned, root / "0.png", tmp_path / "other" / "0.png", "--out", tmp_path / "out") == 1
    assert "expected images of distinct names, but got 0.png twice" in capsys.readouterr().err
    assert command(tuned, root / "0.png", root / "1.png", "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"0.png", "1.png"}


def test_the_folder_one_stands_in_is_called_by_its_name(deep, tmp_path, monkeypatch):
    write_series(tmp_path / "series", np.random.default_rng(0).integers(0, 90, (2, 32, 32)))
    monkeypatch.chdir(tmp_path / "series")
    assert command(deep, ".", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "series.nii.gz").is_file()
