import json

import numpy as np
import pytest
from PIL import Image

from adaptmed.cli.check import check
from adaptmed.data.check import MaskCount, check_manifest
from adaptmed.data.manifest import Manifest
from adaptmed.data.mask_labels import parse_labels
from adaptmed.data.phantom import FINDINGS, write_phantom
from adaptmed.data.survey import survey_files
from adaptmed.errors import InputError
from tests.volume_files import write_nifti, write_series

TABLE = """id,image,mask,text,patient,split
good,a.png,m12.png,,1,train
again,a.png,m1.png,,1,train
empty,b.png,m0.png,,2,train
none,b.png,,,2,train
gone,a.png,gone.png,,1,train
small,b.png,small.png,,3,test
colour,b.png,colour.png,,3,test
text,,m1.png,No finding.,3,test
broken,broken.png,m1.png,,4,test
volume,v.nii,vm.nii,,5,validate
series,ct,ctm.nii,,6,validate
aside,v.nii,aside.nii,,5,validate
"""
REASONS = {
    "text": "expected an image that the mask lies on, but got blank",
    "gone": "No such file or directory",
    "small": "expected the size of its image `b.png`, 8 × 9, but got 8 × 8",
    "colour": "expected grey values or palette indices, but got colours",
    "aside": "expected the affine of its image `v.nii` (corners within 0.1 voxel), but got corners 3 mm apart",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    (folder / "m.csv").write_text(TABLE)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 9), dtype=np.uint8)
    labels = np.zeros((8, 9), np.uint8)
    labels[2:4], labels[5:6] = 1, 2
    pngs = {
        "a": picture,
        "b": picture,
        "m12": labels,
        "m1": (labels == 1).astype(np.uint8) * 255,
        "m0": labels * 0,
        "small": labels[:, 1:],
        "colour": rng.integers(0, 256, (8, 9, 3), dtype=np.uint8),
    }
    for name, pixels in pngs.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    voxels = rng.integers(0, 900, (3, 4, 5)).astype(np.int16)
    write_nifti(folder / "v.nii", voxels)
    write_nifti(folder / "vm.nii", (voxels > 400).astype(np.uint8) * 3)
    write_nifti(
        folder / "aside.nii", (voxels > 400).astype(np.uint8), np.diag([1.0, 1.0, 2.0, 1.0]) + 3 * np.eye(4, k=3)
    )
    write_series(folder / "ct", voxels.transpose(2, 1, 0), 2.0)
    affine = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 30], [0, 0, 2, 40], [0, 0, 0, 1]])
    write_nifti(folder / "ctm.nii", (voxels > 800).astype(np.uint8), affine)
    return folder / "m.csv"


def test_masks_are_counted_and_bad_ones_cost_their_own_rows(path):
    report = check_manifest(Manifest.read(path))
    assert report.masks == (
        MaskCount("train", 4, 3, 1, {1: 2, 2: 1}),
        MaskCount("validate", 3, 2, 0, {1: 1, 3: 1}),
        MaskCount("test", 4, 0, 0, {}),
    )
    assert {reject["row"]: reject["reason"].split(". ")[0] for reject in report.bad_masks} == REASONS
    assert all(reject["mask"] for reject in report.bad_masks)
    assert report.missing == []
    assert [reject["row"] for reject in report.unreadable] == ["broken"]
    assert [reject["row"] for reject in report.rejects] == ["broken", *(reject["row"] for reject in report.bad_masks)]
    assert report.images_read == 5
    assert any(note.startswith("2 volumes and 2 pictures were read; `adaptmed embed`") for note in report.notes)


def test_named_values_alone_are_good(path):
    report = check_manifest(Manifest.read(path), mask_labels=parse_labels(["1=nodule", "3=tumour"]))
    assert report.masks[0] == MaskCount("train", 4, 2, 1, {1: 1})
    reasons = {reject["row"]: reject["reason"] for reject in report.bad_masks}
    assert set(reasons) == {*REASONS, "good"}
    assert reasons["good"].startswith("expected values among 0, 1, 3, but got 2. Name them with --mask-labels")


def test_without_reading_only_missing_masks_are_found(path):
    report = check_manifest(Manifest.read(path), read_images=False)
    assert [reject["row"] for reject in report.bad_masks] == ["text", "gone"]
    assert report.masks == (
        MaskCount("train", 4, 0, 0, {}),
        MaskCount("validate", 3, 0, 0, {}),
        MaskCount("test", 4, 0, 0, {}),
    )


def test_the_command_shows_masks_and_writes_their_rejects(path, tmp_path, capsys):
    check(path, mask_labels=("1=nodule", "2=effusion", "3=tumour", "4=cyst"), rejects=tmp_path / "r.jsonl")
    shown = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    for line in ("train 4 3 1", "test 4 0 0", "1 nodule train 2", "3 tumour validate 1", "4 cyst train 0"):
        assert line in lines
    assert "rows that would be left out: 6 (0 unusable, 0 missing, 1 unreadable, 5 with a bad mask)" in " ".join(lines)
    assert "small.png" in shown
    written = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {reject["row"] for reject in written} == {*REASONS, "broken"}
    with pytest.raises(InputError, match="`mask_labels`: expected value=name"):
        check(path, mask_labels=("nodule",))


def test_a_table_without_masks_shows_none(path, capsys):
    (path.parent / "n.csv").write_text("image,patient\na.png,1\nb.png,2\n")
    check(path.parent / "n.csv")
    assert "mask" not in capsys.readouterr().out


def test_masks_lie_on_their_pictures_and_hold_what_the_labels_say(tmp_path):
    write_phantom(tmp_path, studies=40, seed=5, image_size_px=96)
    names = parse_labels([f"{number}={name}" for number, name in enumerate(FINDINGS, start=1)])
    manifest = Manifest.read(tmp_path / "manifest.csv")
    survey = survey_files(manifest, mask_labels=names)
    assert (survey.missing, survey.unreadable, survey.bad_masks) == ([], [], [])
    assert len(survey.mask_values) == 40
    hidden = 0
    for _, row in manifest.frame.iterrows():
        found = {names[value] for value in survey.mask_values[row["row"]]} - {"background"}
        present = {name for name in FINDINGS if row[name] == 1}
        assert found <= present
        hidden += len(present - found)
    assert hidden <= 2  # where two overlap the smaller is kept
