"""MedPix 2.0 and Decathlon folders: their traps, what is left out, and folders that are not whole."""

import json

import pytest

from adaptmed.data.check import check_manifest
from adaptmed.data.manifest import Manifest
from adaptmed.data.miniatures import write_miniature
from adaptmed.errors import InputError


@pytest.fixture
def medpix(tmp_path):
    return write_miniature("medpix2", tmp_path / "medpix2")


@pytest.fixture
def task(tmp_path):
    return write_miniature("decathlon", tmp_path / "Task04_Hippocampus")


def test_medpix_keeps_the_authors_split_and_mends_captions_and_planes(medpix):
    manifest = Manifest.from_dataset("medpix2", medpix, class_column="plane")
    frame = manifest.frame
    assert frame.groupby("split").size().to_dict() == {"test": 12, "train": 30, "validate": 6}
    assert manifest.overlap() == {}
    assert manifest.classes == ("Axial", "Coronal")
    assert (frame["plane"] == -1).any()  # none said
    assert list(frame.loc[frame["patient"] == "MPX1", "text"]) == ["", ""]  # placeholders
    assert all((manifest.root / image).is_file() for image in frame["image"])
    assert "2 captions are placeholders or blank" in manifest.notes[0]


def test_cases_with_a_picture_in_vqa_rad_are_left_out_on_request(medpix, tmp_path):
    vqa = write_miniature("vqa-rad", tmp_path / "vqa")
    whole, apart = (Manifest.from_dataset("medpix2", medpix, **kind) for kind in ({}, {"without": vqa}))
    left = set(whole.frame["patient"]) - set(apart.frame["patient"])
    assert left == {"MPX0"}
    assert len(apart.rejects) == 2
    assert "1 cases with a picture in VQA-RAD are left out." in apart.notes


def test_decathlon_pairs_volumes_with_labels_and_passes_over_what_is_none(task):
    manifest = Manifest.from_dataset("decathlon", task)
    frame = manifest.frame
    assert frame.groupby("split").size().to_dict() == {"test": 2, "train": 6, "validate": 2}
    assert not frame["image"].str.contains(r"\._").any()
    assert "Labels: 0=background, 1=Anterior, 2=Posterior." in manifest.notes
    report = check_manifest(manifest)
    assert not report.rejects


def test_decathlon_without_its_json_pairs_by_name_and_rejects_what_has_no_other(task):
    (task / "dataset.json").unlink()
    (task / "labelsTr" / "hippocampus_003.nii.gz").unlink()
    manifest = Manifest.from_dataset("decathlon", task)
    assert len(manifest.frame) == 9
    assert [reject["row"] for reject in manifest.rejects] == ["hippocampus_003.nii.gz"]
    assert any("No dataset.json" in note for note in manifest.notes)


def test_a_decathlon_task_that_is_not_whole_is_refused_in_words(task):
    (task / "labelsTr" / "hippocampus_003.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 missing: labelsTr/hippocampus_003"):
        Manifest.from_dataset("decathlon", task)
    facts = json.loads((task / "dataset.json").read_text())
    (task / "dataset.json").write_text(json.dumps(facts | {"modality": {"0": "T1", "1": "T2"}}))
    with pytest.raises(InputError, match="volumes of one channel, but got 2: T1, T2"):
        Manifest.from_dataset("decathlon", task)
    (task / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match="expected modality, labels and training pairs"):
        Manifest.from_dataset("decathlon", task)


def test_a_medpix_folder_that_is_not_whole_is_refused_in_words(medpix):
    part = medpix / "splitted_dataset" / "descriptions_dev.jsonl"
    part.write_text(part.read_text() + '{"image": "x"}\n')
    with pytest.raises(InputError, match=r"line 7.*expected a description of a picture"):
        Manifest.from_dataset("medpix2", medpix)
    part.unlink()
    with pytest.raises(InputError, match=r"got no splitted_dataset/descriptions_dev\.jsonl"):
        Manifest.from_dataset("medpix2", medpix)
