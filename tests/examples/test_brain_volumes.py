import csv
import re
import sys
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from adaptmed.data.check import check_manifest
from adaptmed.data.manifest import Manifest
from adaptmed.data.volumes.reading import read_volume

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = {1: "grey matter", 2: "white matter"}
SIGNS = {"below": -1, "above": 1}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import brain_volumes

        yield brain_volumes
    for name in ("brain_volumes", "brain_slices"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brain")
    script.main(out=folder, prepare_only=True)
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def slabs(folder):
    return table(folder / "manifest.csv")


@pytest.fixture(scope="module")
def slices(folder):
    return table(folder / "slices.csv")


@pytest.fixture(scope="module")
def templates():
    """The template and its maps as nilearn gives them, on one grid."""
    from nilearn import datasets

    names = ("load_mni152_template", "load_mni152_gm_template", "load_mni152_wm_template")
    images = [getattr(datasets, name)(resolution=1) for name in names]
    return [image.get_fdata() for image in images], images[0].affine


def in_template(image, affine):
    """The part of the template's grid that the affine of a slab names, by the place of two opposite corners."""
    corners = np.array([[0, 0, 0, 1], [*(side - 1 for side in image.shape), 1]])
    first, last = (corners @ (np.linalg.inv(affine) @ image.affine).T)[:, :3]
    assert np.allclose([first, last], np.rint([first, last]))
    return tuple(slice(round(a), round(b) + 1) for a, b in zip(first, last, strict=True))


def test_affines_put_every_slab_where_it_was_cut(folder, slabs, templates):
    (t1, _, _), affine = templates
    for row in slabs:
        image = nibabel.load(folder / row["image"])
        assert image.shape == (197, 233, 5)
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert int(image.header["sform_code"]) > 0
        found = t1[in_template(image, affine)]
        assert found.std() > 0.1
        assert np.abs(image.get_fdata() / 255 - found).max() <= 0.5 / 255 + 1e-6


def test_masks_are_the_known_tissue(folder, slabs, templates):
    """Nothing is tissue where the maps together say it is not, and every voxel of tissue is of the likelier kind."""
    (_, grey, white), affine = templates
    total = 0
    for row in slabs:
        image = nibabel.load(folder / row["mask"])
        labels, part = np.asarray(image.dataobj), in_template(image, affine)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels > 0, (grey + white)[part] > 0.5)
        assert (grey[part] >= white[part])[labels == 1].all()
        assert (grey[part] < white[part])[labels == 2].all()
        total += int((labels > 0).sum())
    spanned = (grey + white > 0.5)[..., 12:150].sum()  # from the lowest slice of all to the highest
    assert 0.6 < total / spanned < 0.8  # 5 of 7 millimetres


def test_check_finds_nothing_wrong(folder):
    report = check_manifest(Manifest.read(folder / "manifest.csv"), mask_labels=LABELS)
    assert not report.rejects
    assert not report.overlapping
    assert report.images_read == report.distinct_texts == 20
    counts = {"train": 14, "validate": 2, "test": 4}
    assert {part.split: part.good for part in report.masks} == counts
    for part in report.masks:
        assert not part.empty
        assert part.values == dict.fromkeys(LABELS, counts[part.split])
    pictures = check_manifest(Manifest.read(folder / "slices.csv"))
    assert not pictures.rejects
    assert {part.split: part.images for part in pictures.splits} == {"train": 70, "validate": 10}


def test_slabs_are_kept_apart(folder, slabs):
    heights = []
    for row in slabs:
        volume = read_volume(folder / row["image"])
        heights.append([float((volume.affine @ [place, 0, 0, 1])[2]) for place in range(5)])
    assert all(np.diff(own).tolist() == [1] * 4 for own in heights)
    assert {above[0] - below[-1] for below, above in pairwise(heights)} == {3}


def test_no_test_slab_is_among_the_slices(slabs, slices):
    split = {row["patient"]: row["split"] for row in slabs}
    assert len(split) == len(slabs) == 20
    assert all(split[row["patient"]] == row["split"] for row in slices)
    assert {row["patient"] for row in slices} == {patient for patient, of in split.items() if of != "test"}


def test_slices_are_those_of_their_volumes(folder, slabs, slices):
    volumes = {row["patient"]: read_volume(folder / row["image"]).values for row in slabs}
    assert len({row["image"] for row in slices}) == 80
    for row in slices:
        with Image.open(folder / row["image"]) as image:
            assert image.mode == "L"
            place = int(row["image"].removesuffix(".png")[-1])
            assert np.array_equal(np.asarray(image), volumes[row["patient"]][place])


def stated(text):
    distance, side = re.search(r"(\d+) mm (below|above) the anterior commissure", text).groups()
    return int(distance) * SIGNS[side]


def tissue(labels):
    """Percent of the tissue that is grey and white, and of all that is tissue, in the order of the sentences."""
    some = labels[labels > 0]
    return 100 * (some == 1).mean(), 100 * (some == 2).mean(), 100 * len(some) / labels.size


def test_every_sentence_is_true(folder, slabs, slices):
    masks = {row["patient"]: nibabel.load(folder / row["mask"]) for row in slabs}
    for row in slabs:
        mask = masks[row["patient"]]
        assert row["text"].startswith("Slab of 5 axial slices, its middle")
        assert (mask.affine @ [0, 0, 2, 1])[2] == stated(row["text"])
        percents = [int(number) for number in re.findall(r"(\d+) %", row["text"])]
        assert np.allclose(percents, tissue(np.asarray(mask.dataobj)), atol=0.51)
    for row in slices:
        mask = masks[row["patient"]]
        assert re.match(r"axial|brain in the axial plane", row["text"], re.IGNORECASE)
        at_level = "at the level of the anterior commissure" in row["text"]
        height = 0 if at_level else stated(row["text"])
        place = int(row["image"].removesuffix(".png")[-1])
        assert (mask.affine @ [0, 0, place, 1])[2] == height
        percents = [int(number) for number in re.findall(r"(\d+) %", row["text"])]
        assert np.allclose(percents, tissue(np.asarray(mask.dataobj)[..., place]), atol=0.51)


def test_the_commands_are_called_in_order(script, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(script, "prepare", lambda out: (out / "manifest.csv", out / "slices.csv"))
    monkeypatch.setattr(script.subprocess, "run", lambda words, check: called.append((words, check)))
    script.main(out=tmp_path)
    names = ("check", "embed", "pretrain", "embed", "study", "finetune", "predict")
    assert [words[:4] for words, _ in called] == [[sys.executable, "-m", "adaptmed", name] for name in names]
    assert all(check for _, check in called)
    assert [Path(words[4]).name for words, _ in called[1:4]] == ["slices.csv", "slices-bank", "manifest.csv"]
    for said in (capsys.readouterr().out, script.__doc__):
        assert "no benchmark" in said
    assert "ONE brain" in script.__doc__
