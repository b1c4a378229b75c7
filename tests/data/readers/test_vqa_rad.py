"""VQA-RAD as its authors publish it: every trap of the json, both splits, and what each leaks."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.data.manifest import Manifest
from adaptmed.data.miniatures import write_miniature
from adaptmed.data.readers.vqa_rad import ANNOTATIONS, PICTURES
from adaptmed.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_miniature("vqa-rad", tmp_path_factory.mktemp("vqa"))


def entries_of(folder):
    return json.loads((folder / ANNOTATIONS).read_text())


def read(folder, **options):
    return Manifest.from_dataset("vqa-rad", folder, **options)


def changed(folder, tmp_path, change):
    """The same pictures beside a changed json."""
    entries = entries_of(folder)
    change(entries)
    (tmp_path / PICTURES).symlink_to(folder / PICTURES)
    (tmp_path / ANNOTATIONS).write_text(json.dumps(entries))
    return tmp_path


def test_every_question_is_a_row_with_its_picture_and_its_answer_as_text(folder):
    manifest, entries = read(folder), entries_of(folder)
    frame = manifest.frame
    assert list(frame["row"]) == [str(entry["qid"]) for entry in entries]
    assert list(frame["question"]) == list(frame["text"]) == [entry["question"] for entry in entries]
    assert list(frame["answer"]) == [str(entry["answer"]) for entry in entries]
    assert list(frame["image"]) == [f"{PICTURES}/{entry['image_name']}" for entry in entries]
    assert all((manifest.root / image).is_file() for image in frame["image"])
    assert set(frame["answer_type"]) == {"open", "closed"}
    assert frame["question_type"].iloc[1] == "PRES"  # PRSE there
    assert "POS" in set(frame["question_type"])  # of "POS, PRES" the first
    assert manifest.has_patients
    assert manifest.rejects == []


def test_the_official_split_tests_its_rows_and_validates_on_whole_pictures_of_train(folder):
    frame = read(folder).frame
    tested = [entry["phrase_type"].startswith("test") for entry in entries_of(folder)]
    assert list(frame["split"] == "test") == tested
    sides = {split: set(part["patient"]) for split, part in frame.groupby("split")}
    assert not sides["train"] & sides["validate"]
    assert sides["validate"]
    assert sides["test"] & sides["train"]  # the known leak


def test_the_split_by_picture_has_no_picture_on_two_sides(folder):
    manifest = read(folder, split="image")
    assert manifest.overlap() == {}
    assert set(manifest.frame["split"]) == {"train", "validate", "test"}
    assert read(folder).overlap()


def test_what_the_split_leaks_is_said(folder):
    official, ours = read(folder).notes, read(folder, split="image").notes
    assert any("test pictures stand in train or validate" in note for note in official)
    assert any("not the published rows" in note for note in ours)
    assert any("1 rows repeat" in note for note in official)


def test_the_published_paraphrases_teach_answers_of_test_questions_and_say_so(folder):
    none, train, mevf = (read(folder, paraphrases=kind) for kind in ("none", "train", "mevf"))
    framed = [entry for entry in entries_of(folder) if entry["question_frame"] != "NULL"]
    of_test = [entry for entry in framed if entry["phrase_type"].startswith("test")]
    assert len(train.frame) - len(none.frame) == len(framed) - len(of_test)
    assert len(mevf.frame) - len(none.frame) == len(framed)
    assert (mevf.frame["split"] == "test").sum() == (none.frame["split"] == "test").sum()
    assert any(f"{len(of_test)} test questions stand in train" in note for note in mevf.notes)
    assert not any("common form" in note for note in train.notes)
    assert read(folder, paraphrases=True).sha256 == mevf.sha256
    sides = {split: set(part["patient"]) for split, part in mevf.frame.groupby("split")}
    assert not sides["train"] & sides["validate"]


def test_splits_do_not_depend_on_the_order_of_the_entries(folder, tmp_path):
    other = changed(folder, tmp_path, lambda entries: entries.reverse())
    for split in ("official", "image"):
        one, two = (read(place, split=split).frame.set_index("row")["split"] for place in (folder, other))
        pd.testing.assert_series_equal(one.sort_index(), two.sort_index())


def test_saved_and_read_again_it_is_the_same(folder, tmp_path):
    manifest = read(folder, split="image")
    again = Manifest.read(manifest.save(tmp_path / "deep" / "vqa.csv"))
    images = [(again.root / image).resolve() for image in again.frame["image"]]
    assert images == [(manifest.root / image).resolve() for image in manifest.frame["image"]]
    pd.testing.assert_frame_equal(again.frame.drop(columns="image"), manifest.frame.drop(columns="image"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / ANNOTATIONS).unlink(), f"got no {ANNOTATIONS}"),
        (lambda folder: (folder / ANNOTATIONS).write_text("{"), "expected a json file"),
        (lambda folder: (folder / ANNOTATIONS).write_text("{}"), "expected a list of objects, but got a dict"),
        (lambda folder: (folder / PICTURES / "synpic10003.jpg").unlink(), "got 1 missing: synpic10003.jpg"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_words(tmp_path, spoil, message):
    spoil(write_miniature("vqa-rad", tmp_path))
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_another_version_of_the_json_is_refused_in_words(folder, tmp_path):
    other = changed(folder, tmp_path, lambda entries: entries[7].pop("answer_type"))
    with pytest.raises(InputError, match=r"got none of answer_type in entry 7\. It is another version"):
        read(other)


def test_options_that_there_are_not_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"(?s)dataset.*one of decathlon.*Did you mean vqa-rad"):
        Manifest.from_dataset("vqarad", ".")
    with pytest.raises(InputError, match=r"(?s)`splits`: expected an option.*Did you mean split\?"):
        Manifest.from_dataset("vqa-rad", ".", splits="official")
    with pytest.raises(InputError, match="a folder of the dataset vqa-rad, but got nothing there"):
        Manifest.from_dataset("vqa-rad", "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "patient"}, "one of official, image, but got 'patient'"),
        ({"paraphrases": "all"}, "one of none, train, mevf"),
        ({"split": "image", "paraphrases": True}, "train or none with split='image'"),
    ],
)
def test_values_that_there_are_not_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        read(folder, **options)


@given(
    st.one_of(st.integers(-9, 10**6), st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
)
def test_any_answer_arrives_as_its_text(answer):
    from adaptmed.data.readers.vqa_rad import _text

    assert _text(answer) == ("" if answer == "NULL" else str(answer).strip())
